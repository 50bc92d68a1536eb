//! Why a build went wrong, in which step, and whose it is.

mod common;

use common::{
    Bot, Client, FAILURE, FakeHttp, FakeMaster, Lab, Request, SUCCESS, TIMEOUT, buildbot, wait_for,
};
use serde_json::json;

/// Steps that fail with logs of every kind.
const MASTER: &str = r#"
def python(name, text):
    return steps.ShellCommand(name=name, command=["python3", "-c", text], haltOnFailure=False, flunkOnFailure=True)

long = "for n in range(100000): print('\\x1b[31mline', n, '\\x1b[0m')\nprint()\nraise SystemExit(1)"
builder("long", python("compile", "print(1)"), python("test", long), python("lint", "raise SystemExit(2)"))
builder("errors", python("test", "import sys\nprint('fine')\nprint('no such file', file=sys.stderr)\nsys.stderr.flush()\nprint('fine')\nsys.exit(1)"))
builder("quiet", python("test", "raise SystemExit(1)"))
builder("wide", python("test", "print('x' * 10_000_000)\nraise SystemExit(1)"))
gated("gated")
gated("other")

class WithoutLog(BuildStep):
    name = "nothing"
    def run(self):
        return FAILURE

class WithHtml(BuildStep):
    name = "report"
    def run(self):
        self.addHTMLLog("report", "<b>bad</b>")
        return FAILURE

builder("nolog", WithoutLog())
builder("html", WithHtml())
c["schedulers"].append(schedulers.AnyBranchScheduler("both", builderNames=["gated", "other"],
    change_filter=util.ChangeFilter(branch="main"), treeStableTimer=None))
force("force", ["long", "errors", "quiet", "wide", "nolog", "html", "gated", "other"])
"#;

#[track_caller]
fn run(lab: &Lab, builder: &str) {
    lab.master().force(builder, &[]);
    lab.master().wait_build(builder, 1);
}

/// Says something in the channel, and returns what the bot says then, so many lines.
#[track_caller]
fn ask(ann: &Client, command: &str, lines: usize) -> Vec<String> {
    ann.skip();
    ann.say("#a", &format!("bot: {command}"));
    let mut said = Vec::new();
    for _ in 0..lines {
        let line = ann.expect_contains(" PRIVMSG #a :");
        said.push(line.split_once(" :").expect("a text").1.to_owned());
    }
    said
}

#[test]
fn why_tells_the_step_and_its_last_words() {
    buildbot();
    let lab = Lab::new()
        .with_master("why", MASTER)
        .with_worker("w1")
        .with_ngircd();
    let ann = lab.person("ann", &["#a", "#e"]);
    let irc = "[channel #a]\n[channel #e]\nnotify_events = failure\n";
    let mut bot = lab.start_ready("bot", "", irc);
    bot.wait_subscribed(1);
    assert_eq!(ask(&ann, "why", 1), ["nothing has gone wrong lately"]);

    run(&lab, "long");
    // The master's reason names no more than a command.
    let told = ann.expect_contains(" PRIVMSG #e :");
    assert!(told.contains(": failed in test, lint, took "), "{told}");
    let said = ask(&ann, "why", 4);
    let first = &said[0];
    assert!(
        first.starts_with("long #1 failure: step test ('python3 -c ...'); also lint http"),
        "{first}"
    );
    let step = first.rsplit_once("/steps/").map_or("", |(_, step)| step);
    assert!(
        step.ends_with("/logs/stdio") && step.starts_with(['1', '2']),
        "{first}"
    );
    assert_eq!(said[1..], ["| line 99997", "| line 99998", "| line 99999"]);

    run(&lab, "errors");
    let said = ask(&ann, "why errors", 2);
    assert_eq!(said[1], "| no such file");
    for (builder, sentence) in [
        ("quiet", "its log says nothing"),
        ("nolog", "it has no log"),
        ("html", "its log is no text"),
    ] {
        run(&lab, builder);
        let said = ask(&ann, &format!("why {builder}"), 2);
        assert!(
            said[0].starts_with(&format!("{builder} #1 failure: step ")),
            "{said:?}"
        );
        assert_eq!(said[1], sentence, "{builder}");
    }
    // Of a line of 10 MB Buildbot makes several.
    run(&lab, "wide");
    let said = ask(&ann, "why wide", 4);
    let is_short = |line: &String| line.starts_with("| xxx") && line.len() < 400;
    assert!(said[1..].iter().all(is_short), "{said:?}");
    assert_eq!(ask(&ann, "why long 9", 1), ["long has no build #9"]);
    lab.build("gated", 1, SUCCESS);
    let fine = ask(&ann, "why gated 1", 1);
    assert!(
        fine[0].starts_with("gated #1 success; no step went wrong http"),
        "{fine:?}"
    );
    assert_eq!(
        ask(&ann, "why gated", 1),
        ["gated: no build has gone wrong"]
    );

    let finished = lab.execute("why errors 1");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(
        finished.stdout.ends_with("/logs/stdio\n| no such file\n"),
        "{}",
        finished.stdout
    );
    let finished = lab.execute("why nosuch");
    assert_eq!(finished.code, 65);
}

#[track_caller]
fn change(lab: &Lab, author: &str) {
    lab.master().change(author, "r1", "c");
}

#[test]
fn who_is_blamed_hears_of_it_once_for_a_change() {
    buildbot();
    let lab = Lab::new()
        .with_master("blamed", MASTER)
        .with_worker("w1")
        .with_ngircd();
    let eve = lab.person("eve", &["#a"]);
    let annie = lab.person("annie", &[]);
    let irc = "notify_events = problem recovery\n[channel #a]\npm_blamed = yes\n[nicks]\nann@example.org = annie\n";
    let buildbot = "poll_interval = 200ms\nevent_stream = no";
    let mut polling = lab.start_ready("polling", buildbot, &irc.replace("#a", "#b"));
    let mut bot: Bot = lab.start_ready("bot", "", irc);
    bot.wait_subscribed(1);
    change(&lab, "Ann <Ann@example.org>");
    for builder in ["gated", "other"] {
        lab.master().release(builder, FAILURE);
    }
    for builder in ["gated", "other"] {
        let line = eve.expect_contains(" PRIVMSG #a :");
        assert!(line.contains(", blame annie "), "{builder}: {line}");
    }
    for builder in ["gated", "other"] {
        lab.build(builder, 2, SUCCESS);
    }
    // The master blames for all changes since the last one that was built with success.
    change(&lab, "nobody@example.org");
    for builder in ["gated", "other"] {
        lab.master().release(builder, FAILURE);
        lab.master().wait_build(builder, 3);
    }
    eve.expect_contains(", blame nobody@example.org, annie ");
    eve.expect_contains(", blame nobody@example.org, annie ");
    // Each takes its own time: one hears, the other asks.
    wait_for("two private lines of each", TIMEOUT, || {
        (annie.lines("annie").len() >= 4).then_some(())
    });
    bot.stop();
    polling.stop();
    annie.barrier();
    for nick in ["bot", "polling"] {
        let private: Vec<String> = annie.lines("annie");
        let of_bot: Vec<&String> = private
            .iter()
            .filter(|line| line.starts_with(&format!("<{nick}>")))
            .collect();
        assert_eq!(of_bot.len(), 2, "one for each change: {private:?}");
        let numbers = ["#1 failure", "#3 failure"];
        let in_order = of_bot
            .iter()
            .zip(numbers)
            .all(|(line, number)| line.contains(number));
        assert!(in_order, "{private:?}");
    }
}

/// A master whose logs are as this one's never are: of lines longer than any answer that we take, and gone.
#[test]
fn a_log_that_cannot_be_read_is_a_sentence() {
    let master = FakeMaster::new(2);
    let serving = master.clone();
    let server = FakeHttp::start(move |request: &Request| {
        let log = |kind: &str| json!({"logid": 1, "name": "stdio", "slug": "stdio", "type": kind, "num_lines": 5});
        match request.resource() {
            "/api/v2/builds/1/steps" | "/api/v2/builds/2/steps" => {
                let id = if request.resource().contains("/1/") {
                    1
                } else {
                    2
                };
                request.page("steps", [json!({"stepid": id, "number": 1, "name": "test", "results": 2, "state_string": ""})])
            }
            "/api/v2/steps/1/logs" => request.page("logs", [log("s")]),
            "/api/v2/steps/2/logs" => request.page("logs", [log("d")]),
            "/api/v2/logs/1/contents" => {
                request.page("logchunks", [json!({"content": "x".repeat(3_000_000)})])
            }
            _ => serving.answer(request),
        }
    });
    master.end([(1, FAILURE), (2, FAILURE)], 1_795_361_893);
    for (builder, sentence) in [
        ("b1", "the lines of its log are too long to read"),
        ("b2", "the master has deleted its log"),
    ] {
        let finished = common::execute(&server.url(), "", &format!("why {builder}"));
        let expected = format!(
            "failure: step test http://m/#/builders/{}/builds/{}/steps/1/logs/stdio\n{sentence}\n",
            &builder[1..],
            &builder[1..]
        );
        assert!(
            finished.stdout.ends_with(&expected),
            "{}{}",
            finished.stdout,
            finished.stderr
        );
    }
}
