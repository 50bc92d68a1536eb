//! One line for all that a change has started.

mod common;

use common::{Bot, Client, FAILURE, Lab, POLLING, SUCCESS, TIMEOUT, buildbot, wait_for};

const BUILDERS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// A scheduler of six builders and one of a single one, for changes on any branch.
const MASTER: &str = r#"
for name in ["a", "b", "c", "d", "e", "f", "lone"]:
    gated(name, tags=["six"] if name != "lone" else [])
any_branch = util.ChangeFilter(branch_re=".*")
c["schedulers"].append(schedulers.AnyBranchScheduler("six", builderNames=["a", "b", "c", "d", "e", "f"],
    change_filter=util.ChangeFilter(branch_fn=lambda b: b != "lone"), treeStableTimer=None))
c["schedulers"].append(schedulers.AnyBranchScheduler("lone", builderNames=["lone"],
    change_filter=util.ChangeFilter(branch="lone"), treeStableTimer=None))
c["collapseRequests"] = False
force("force", ["a", "lone"])
"#;

fn lab(name: &str) -> Lab {
    Lab::new()
        .with_master(name, MASTER)
        .with_worker("w1")
        .with_ngircd()
}

#[track_caller]
fn change(lab: &Lab, branch: &str, revision: &str, comments: &str) {
    lab.master().change_with(&[
        ("author", "Ann Author <ann@example.org>"),
        ("revision", revision),
        ("comments", comments),
        ("branch", branch),
    ]);
}

/// The builds with this number of all six builders end, all but these with success.
#[track_caller]
fn end(lab: &Lab, number: i64, failing: &[&str]) {
    for builder in BUILDERS {
        let result = if failing.contains(&builder) {
            FAILURE
        } else {
            SUCCESS
        };
        lab.master().release(builder, result);
    }
    for builder in BUILDERS {
        lab.master().wait_build(builder, number);
    }
}

/// The next line in the channel begins like this.
#[track_caller]
fn hear(ann: &Client, beginning: &str) -> String {
    let line = ann.expect_contains(" PRIVMSG #");
    let (_, text) = line.split_once(" :").expect("a text");
    assert!(text.starts_with(beginning), "{text}\nexpected: {beginning}");
    text.to_owned()
}

fn start(lab: &Lab, buildbot: &str, irc: &str) -> Bot {
    let mut bot = lab.start_ready("bot", buildbot, irc);
    if buildbot.is_empty() {
        bot.wait_subscribed(1);
    }
    bot
}

const IRC: &str = "announce = changes\nnotify_events = problem recovery\n[channel #a]\n\
    [nicks]\nann@example.org = annie\n[authorization]\nforce = everyone";

/// What a change makes of six builders is one line, with the stream and without.
#[track_caller]
fn tells_one_line_a_change(name: &str, buildbot: &str) {
    common::buildbot();
    let lab = lab(name);
    let ann = lab.person("ann", &["#a"]);
    let _bot = start(&lab, buildbot, IRC);
    ann.skip();

    change(
        &lab,
        "main",
        "1a2b3c4d5e1a2b3c4d5e1a2b3c4d5e1a2b3c4d5e",
        "Fine\n\nMore",
    );
    end(&lab, 1, &[]);
    change(
        &lab,
        "main",
        "2a2b3c4d5e1a2b3c4d5e1a2b3c4d5e1a2b3c4d5e",
        "Tune the frob\n\nMore",
    );
    end(&lab, 2, &["b", "e"]);
    let line = hear(
        &ann,
        "2a2b3c4d5e on main by annie (Tune the frob): failure ",
    );
    let both = line
        .contains("failure b #2 (was success), e #2 (was success); success 4 others; took ")
        || line.contains("failure e #2 (was success), b #2 (was success); success 4 others; took ");
    assert!(both && line.ends_with("/builds/2"), "{line}");

    change(&lab, "main", "r3", "Mend it");
    end(&lab, 3, &["b"]);
    let line = hear(
        &ann,
        "r3 on main by annie (Mend it): failure b #3 (2nd in a row); success e #3 (fixed)",
    );
    assert!(line.contains(" and 4 others; took "), "{line}");

    // A buildset of one builder gets the ordinary line, and a force, too.
    change(&lab, "lone", "r4", "Alone");
    lab.master().release("lone", FAILURE);
    let line = hear(&ann, "lone #1 failure: ");
    assert!(line.contains(", blame annie "), "{line}");
    lab.build("lone", 2, SUCCESS);
    hear(&ann, "lone #2 success (fixed), took ");

    // Who has forced a build hears of its end, and the channel no second time.
    ann.say("#a", "bot: force build --branch=main a again");
    hear(&ann, "forced a #4 http");
    lab.master().release("a", FAILURE);
    hear(&ann, "a #4 failure (was success): ");
    ann.say("#a", "bot: version");
    hear(&ann, "buildbot-irc ");
}

#[test]
fn one_line_a_change_with_the_stream() {
    tells_one_line_a_change("changes", "");
}

#[test]
fn one_line_a_change_by_polling() {
    tells_one_line_a_change("changes-polling", POLLING);
}

/// Waits until all of these are complete.
#[track_caller]
fn wait_idle(lab: &Lab, what: &str, id: &str) {
    let path = format!("/api/v2/{what}?complete=false&field={id}&field=complete");
    wait_for(&format!("no more {what}"), TIMEOUT, || {
        let open = lab.master().get(&path);
        open[what].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn a_change_is_told_once_and_never_lost() {
    buildbot();
    let mut lab = lab("changes-outage");
    let ann = lab.person("ann", &["#a", "#finished"]);
    let irc = "announce = changes\nnotify_events = finished started\n[channel #a]\nnotify_events = finished\n\
        [bot]\nstate_file = state";
    let mut bot = start(&lab, "", irc);
    ann.skip();

    // Half of it has ended when the bot is killed, the rest while it is away.
    change(&lab, "main", "r1", "One");
    for builder in ["a", "b", "c"] {
        lab.master().release(builder, SUCCESS);
        lab.master().wait_build(builder, 1);
    }
    bot.wait_state("three builds of a buildset", |state| {
        state["buildsets"][0]["builds"]
            .as_array()
            .is_some_and(|builds| builds.len() == 3)
    });
    bot.kill9();
    for builder in ["d", "e", "f"] {
        lab.master().release(builder, SUCCESS);
        lab.master().wait_build(builder, 1);
    }
    bot.start_again();
    let line = hear(&ann, "r1 on main by Ann Author (One): success ");
    for builder in BUILDERS {
        assert!(line.contains(&format!("{builder} #1")), "{line}");
    }

    // The master is away while it ends.
    change(&lab, "main", "r2", "Two");
    for builder in ["a", "b"] {
        lab.master().release(builder, SUCCESS);
        lab.master().wait_build(builder, 2);
    }
    // No build runs when the master is killed: what would become of it is a matter of luck.
    lab.master().wait_started("c", 2);
    lab.stop_worker("w1");
    wait_idle(&lab, "builds", "buildid");
    lab.master_mut().kill();
    lab.master_mut().start_again();
    lab.start_worker("w1");
    for builder in ["c", "d", "e", "f"] {
        lab.master().release(builder, FAILURE);
    }
    wait_idle(&lab, "buildrequests", "buildrequestid");
    hear(&ann, "r2 on main by Ann Author (Two): ");
    ann.barrier();
    let lines = ann.lines("#a");
    let told = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        (told("r1 on main"), told("r2 on main")),
        (1, 1),
        "{lines:?}"
    );
    assert_eq!(told(" #"), 2, "no build has a line of its own: {lines:?}");
}

#[test]
fn what_never_ends_is_told_after_catch_up_and_its_rest_when_that_ends() {
    buildbot();
    let lab = lab("changes-endless");
    let ann = lab.person("ann", &["#a"]);
    let irc =
        "announce = changes\nnotify_events = finished started\n[channel #a]\n[bot]\ncatch_up = 3s";
    let _bot = start(&lab, "", irc);
    ann.skip();
    change(&lab, "main", "r1", "One");
    let line = hear(&ann, "r1 on main by Ann Author (One): started ");
    for builder in BUILDERS {
        assert!(line.contains(builder), "{line}");
    }
    for builder in ["a", "b"] {
        lab.master().release(builder, SUCCESS);
    }
    hear(
        &ann,
        "r1 on main by Ann Author (One): success a #1, b #1; 4 still open; took",
    );
    for builder in ["c", "d", "e", "f"] {
        lab.master().release(builder, SUCCESS);
    }
    let line = hear(
        &ann,
        "r1 on main by Ann Author (One): success c #1, d #1, e #1, f #1; took",
    );
    assert!(!line.contains("still open"), "{line}");
}
