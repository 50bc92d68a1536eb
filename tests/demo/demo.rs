//! `make demo`: a real master with a worker, a real IRC server, the bot, and a short play of a team between them. Ends
//! with an error if it does not go as it should. Writes what was said to target/demo.json, for `make pictures`.

#[path = "../common/mod.rs"]
mod common;
#[path = "../bench/origin.rs"]
mod origin;

use common::{Client, Lab};
use serde_json::{Value, json};
use std::fs;
use std::io::IsTerminal;
use std::time::Duration;

const CHANNEL: &str = "#demo";
const BOT: &str = "buildbot";
/// Two builders, which build whatever branch a change is on; their tests fail while the file `broken` is there.
const MASTER: &str = r#"
def step(name, line):
    return steps.ShellCommand(name=name, descriptionDone=name, command=["sh", "-c", line])

test = f"! test -e {HERE}/broken || {{ echo 'frob_test: expected 4, got 5' >&2; exit 1; }}"
for name in ["linux", "mac"]:
    builder(name, step("compile", "sleep 1"), step("test", test))
any_branch = util.ChangeFilter(branch_re=".*")
c["schedulers"].append(schedulers.AnyBranchScheduler(
    "changes", builderNames=["linux", "mac"], change_filter=any_branch, treeStableTimer=None))
force("force", ["linux", "mac"])
"#;
/// What the bot is told of IRC. The first in a channel is its operator: Ann.
const IRC: &str = "use_colors = yes\nnotify_events = problem recovery\nannounce = changes\n[channel #demo]\n\
    [nicks]\nann@example.org = ann\nbob@example.org = bob\n[authorization]\nforce = op";

const ANN: &str = "Ann Author <ann@example.org>";
const BOB: &str = "Bob Builder <bob@example.org>";

/// The team, and somebody who prints what happens and what is said.
struct Play {
    ann: Client,
    bob: Client,
    audience: Client,
    /// How many lines of the channel were printed.
    shown: usize,
    /// Everything that was printed.
    record: Vec<Value>,
    is_paced: bool,
}

impl Play {
    fn new(lab: &Lab) -> Play {
        let [ann, bob, audience] =
            ["ann", "bob", "audience"].map(|nick| lab.person(nick, &[CHANNEL]));
        Play {
            ann,
            bob,
            audience,
            shown: 0,
            record: Vec::new(),
            is_paced: std::io::stdout().is_terminal(),
        }
    }

    fn narrate(&mut self, text: &str) {
        self.show();
        println!("\n  \x1b[3m{text}\x1b[0m");
        self.record.push(json!({"told": text}));
        self.pause(1500);
    }

    fn ann_says(&mut self, text: &str, answer: &str) {
        self.ann.say(CHANNEL, text);
        self.hear(text);
        self.hear(answer);
    }

    fn bob_says(&mut self, text: &str, answer: &str) {
        self.bob.say(CHANNEL, text);
        self.hear(text);
        self.hear(answer);
    }

    /// A line that holds `text` must come.
    fn hear(&mut self, text: &str) {
        self.audience.expect_contains(text);
        self.show();
        self.pause(1500);
    }

    fn show(&mut self) {
        for line in &self.audience.lines(CHANNEL)[self.shown..] {
            println!("  {CHANNEL} {}", with_terminal_colors(line));
            self.record.push(json!({"said": line}));
            self.shown += 1;
        }
    }

    /// Only people need time to read.
    fn pause(&self, ms: u64) {
        if self.is_paced {
            std::thread::sleep(Duration::from_millis(ms));
        }
    }

    fn write(&self) {
        let record = json!({
            "commit": origin::commit(), "machine": origin::machine(),
            "channel": CHANNEL, "bot": BOT, "lines": self.record,
        });
        let file = common::root().join("target/demo.json");
        let text = serde_json::to_string_pretty(&record).expect("plain values");
        fs::write(file, text + "\n").expect("target can be written");
    }
}

/// The colours of IRC as those of the terminal.
fn with_terminal_colors(line: &str) -> String {
    let mut line = line
        .replacen('<', "\x1b[35m<", 1)
        .replacen('>', ">\x1b[0m", 1)
        .replace('\u{f}', "\x1b[0m");
    for (irc, terminal) in [
        ("03", 32),
        ("07", 33),
        ("04", 31),
        ("14", 90),
        ("06", 35),
        ("02", 34),
        ("13", 95),
    ] {
        line = line.replace(&format!("\u{3}{irc}"), &format!("\x1b[1;{terminal}m"));
    }
    line
}

fn main() {
    println!("Starting a Buildbot master with a worker, and an IRC server …");
    let lab = Lab::new()
        .with_master("demo", MASTER)
        .with_worker("w1")
        .with_ngircd();
    println!("Starting the bot with this configuration:\n");
    for line in lab.config(BOT, "", IRC).lines() {
        println!("    {line}");
    }
    let mut play = Play::new(&lab);
    let _bot = lab.start_ready(BOT, "", IRC);
    perform(&lab, &mut play);
    play.write();

    if !play.is_paced {
        println!("\nThe demo went as it should.");
        return;
    }
    println!("\nIt is your turn. The bot and its servers stay until you press Ctrl-C:");
    println!(
        "    an IRC client: 127.0.0.1 port {}, no TLS, channel {CHANNEL}",
        lab.irc_port
    );
    println!("    a browser:     {}", lab.master_url);
    loop {
        std::thread::park();
    }
}

/// Three changes: a good one, one on a branch that breaks both builders, and one that mends them.
fn perform(lab: &Lab, play: &mut Play) {
    let master = lab.master();
    let change = |author, branch, revision, comments| {
        master.change_with(&[
            ("author", author),
            ("branch", branch),
            ("revision", revision),
            ("comments", comments),
        ]);
    };
    play.narrate("Ann commits a change. Everything builds, and nobody is disturbed.");
    let revision = "3f786850e387550fdab836ed7e6dc881de23001b";
    change(ANN, "main", revision, "Add the frob");
    master.wait_build("linux", 1);
    master.wait_build("mac", 1);
    play.ann_says("buildbot: status", "mac: idle");

    play.narrate("Bob commits to a branch, and breaks both builders: that is one line.");
    let broken = master.dir.join("broken");
    fs::write(&broken, "").expect("a file in the master's directory");
    let revision = "89e6c98d92887913cadf06b2adb97f26cde4849b";
    change(BOB, "faster", revision, "Tune the frob");
    play.hear(
        "89e6c98d92 on faster by bob (Tune the frob): \u{3}04failure\u{f} linux #2, mac #2; took",
    );
    play.ann_says("buildbot: why", "| frob_test: expected 4, got 5");

    play.narrate(
        "He would rather not believe it. Only operators may force a build here: that is Ann.",
    );
    play.bob_says(
        "buildbot: force build --branch=faster linux once more",
        "you may not use `force`",
    );
    play.ann_says(
        "buildbot: force build --branch=faster linux once more",
        "forced linux #3",
    );
    play.hear("linux #3 on faster \u{3}04failure\u{f} (2nd in a row)");

    play.narrate("Bob mends it.");
    fs::remove_file(&broken).expect("the file made above");
    let revision = "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15";
    change(BOB, "faster", revision, "Fix the frob");
    play.hear("f1d2d2f924 on faster by bob (Fix the frob): \u{3}03success\u{f} linux #4 (fixed), mac #3 (fixed)");
    play.bob_says("buildbot: list changes", "Add the frob");
}
