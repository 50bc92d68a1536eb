//! Builders that build several branches, and several codebases: what is named, compared and filtered.

mod common;

use common::{Bot, Client, FAILURE, Lab, POLLING, SUCCESS, buildbot};

/// `app` builds whatever branch a change is on; `both` builds two codebases.
const MASTER: &str = r#"
gated("app")
gated("both")
c["codebaseGenerator"] = lambda change: "lib" if change["repository"] == "lib" else "app" if change["repository"] == "app" else ""
any_branch = util.ChangeFilter(branch_re=".*", codebase="")
c["schedulers"].append(schedulers.AnyBranchScheduler("app", builderNames=["app"], change_filter=any_branch, treeStableTimer=None))
c["schedulers"].append(schedulers.AnyBranchScheduler("both", builderNames=["both"], change_filter=util.ChangeFilter(codebase_re="app|lib"),
    treeStableTimer=None, codebases={"app": {"repository": "app", "branch": "main"}, "lib": {"repository": "lib", "branch": "master"}}))
force("force", ["app"])
"#;

fn lab(name: &str) -> Lab {
    Lab::new()
        .with_master(name, MASTER)
        .with_worker("w1")
        .with_ngircd()
}

/// A change on a branch, and the build that it starts, to its end.
#[track_caller]
fn build(lab: &Lab, builder: &str, repository: &str, branch: &str, number: i64, result: i64) {
    let revision = format!("{branch}-{number}");
    lab.master().change_with(&[
        ("author", "Ann <ann@example.org>"),
        ("revision", &revision),
        ("comments", "c"),
        ("branch", branch),
        ("repository", repository),
    ]);
    lab.master().release(builder, result);
    lab.master().wait_build(builder, number);
}

/// One bot that hears of builds by the event stream, and one that polls, each with a listener.
struct Pair {
    bots: Vec<Bot>,
    listeners: Vec<Client>,
    irc: String,
}

const NICKS: [&str; 2] = ["stream", "polling"];

impl Pair {
    /// Bots whose `[irc]` ends with these lines, in a channel of their own and in #main.
    fn start(lab: &Lab, irc: &str) -> Pair {
        let listeners =
            NICKS.map(|nick| lab.person(&format!("ear-{nick}"), &[&format!("#{nick}")]));
        let mut pair = Pair {
            bots: Vec::new(),
            listeners: listeners.into(),
            irc: irc.to_owned(),
        };
        pair.start_bots(lab);
        pair
    }

    fn start_bots(&mut self, lab: &Lab) {
        for (nick, buildbot) in NICKS.into_iter().zip(["", POLLING]) {
            let irc = format!("{}\n[channel #{nick}]", self.irc);
            self.bots.push(lab.start_ready(nick, buildbot, &irc));
        }
        self.bots[0].wait_subscribed(1);
    }

    fn restart_bots(&mut self, lab: &Lab) {
        for mut bot in self.bots.drain(..) {
            bot.stop();
        }
        self.start_bots(lab);
    }

    /// Both say this next, and nothing else before.
    #[track_caller]
    fn hear(&self, beginning: &str) {
        for listener in &self.listeners {
            let line = listener.expect_contains(" PRIVMSG #");
            let (_, text) = line.split_once(" :").expect("a text");
            assert!(text.starts_with(beginning), "{text}\nexpected: {beginning}");
        }
    }
}

#[test]
fn changes_are_told_by_branch() {
    buildbot();
    let lab = lab("branches");
    let ann = lab.person("ann", &["#main"]);
    let irc = "notify_events = problem recovery\n[channel #main]\nbranches = * !pr-*";
    let mut pair = Pair::start(&lab, irc);

    build(&lab, "app", "", "main", 1, SUCCESS);
    // A branch that goes wrong at once is a problem.
    build(&lab, "app", "", "pr-1", 2, FAILURE);
    pair.hear("app #2 on pr-1 failure: ");
    // `main` was never red, so there is nothing to recover from.
    build(&lab, "app", "", "main", 3, SUCCESS);
    build(&lab, "app", "", "pr-1", 4, SUCCESS);
    pair.hear("app #4 on pr-1 success (fixed), took");
    // One without a branch belongs to the branch that most of the others have.
    build(&lab, "app", "", "main", 5, SUCCESS);
    lab.build("app", 6, FAILURE);
    pair.hear("app #6 failure (was success): ");
    build(&lab, "app", "", "main", 7, SUCCESS);
    pair.hear("app #7 on main success (fixed), took");

    // The same after a restart, when the builds before have to be asked for.
    pair.restart_bots(&lab);
    build(&lab, "app", "", "pr-1", 8, FAILURE);
    pair.hear("app #8 on pr-1 failure (was success): ");
    build(&lab, "app", "", "main", 9, FAILURE);
    pair.hear("app #9 on main failure (was success): ");
    build(&lab, "app", "", "main", 10, FAILURE);
    build(&lab, "app", "", "pr-1", 11, SUCCESS);
    pair.hear("app #11 on pr-1 success (fixed)");

    let heard = ann.lines("#main");
    let told: Vec<&String> = heard
        .iter()
        .filter(|line| line.contains("> app #"))
        .collect();
    assert_eq!(told.len(), 6, "three of each bot: {told:?}");
    assert!(told.iter().all(|line| !line.contains("on pr-")), "{told:?}");

    pair.listeners[0].say("#stream", "stream: status app");
    pair.listeners[1].say("#polling", "polling: status app");
    pair.hear("app: idle; last #11 on pr-1 success");
    pair.listeners[0].say("#stream", "stream: last app");
    pair.listeners[1].say("#polling", "polling: last app");
    pair.hear("app: #11 on pr-1 success");
    pair.listeners[0].say("#stream", "stream: why app");
    pair.listeners[1].say("#polling", "polling: why app");
    pair.hear("app #10 on main failure: step gate ");
    let finished = lab.execute("last app");
    assert!(
        finished.stdout.contains("#11 on pr-1 success"),
        "{}",
        finished.stdout
    );
}

#[test]
fn of_several_codebases_the_one_that_differs_gives_the_branch() {
    buildbot();
    let lab = lab("codebases");
    let mut pair = Pair::start(&lab, "notify_events = finished");

    build(&lab, "both", "app", "main", 1, SUCCESS);
    pair.hear("both #1 success, took");
    build(&lab, "both", "lib", "master", 2, SUCCESS);
    pair.hear("both #2 success, took");
    build(&lab, "both", "lib", "fix", 3, FAILURE);
    pair.hear("both #3 on fix failure: ");
    build(&lab, "both", "app", "main", 4, SUCCESS);
    pair.hear("both #4 on main success, took");

    pair.restart_bots(&lab);
    build(&lab, "both", "lib", "fix", 5, SUCCESS);
    pair.hear("both #5 on fix success (fixed), took");
}
