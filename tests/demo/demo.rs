//! `make demo`: a real master with a worker, a real IRC server, the bot, and a short play between them. Ends with an
//! error if it does not go as it should.

#[path = "../common/mod.rs"]
mod common;

use common::{Client, Lab};
use std::fs;
use std::io::IsTerminal;
use std::time::Duration;

const CHANNEL: &str = "#demo";
/// A build that takes a moment, and fails while the file `broken` is there.
const MASTER: &str = r#"
builder("app", "sleep 2", f"test ! -e {HERE}/broken", tags=["demo"])
builder("docs", "sleep 1", tags=["demo"])
on_change("changes", ["app", "docs"])
force("force", ["app", "docs"])
"#;

/// Prints what happens, and what is said in the channel.
struct Narrator {
    joe: Client,
    /// How many lines of the channel were printed.
    shown: usize,
    is_paced: bool,
}

impl Narrator {
    fn narrate(&mut self, text: &str) {
        self.show();
        println!("\n  \x1b[3m{text}\x1b[0m");
        self.pause(1500);
    }

    /// Joe says something; the answer must hold `answer`.
    fn say(&mut self, text: &str, answer: &str) {
        println!("  {CHANNEL} \x1b[36m<joe>\x1b[0m {text}");
        self.joe.say(CHANNEL, text);
        self.hear(answer);
    }

    /// The bot must say a line that holds `text`.
    fn hear(&mut self, text: &str) {
        self.joe.expect_contains(text);
        self.show();
        self.pause(1500);
    }

    fn show(&mut self) {
        for line in &self.joe.lines(CHANNEL)[self.shown..] {
            println!("  {CHANNEL} {}", with_terminal_colors(line));
            self.shown += 1;
        }
    }

    /// Only people need time to read.
    fn pause(&self, ms: u64) {
        if self.is_paced {
            std::thread::sleep(Duration::from_millis(ms));
        }
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
    let is_paced = std::io::stdout().is_terminal();
    println!("Starting a Buildbot master with a worker, and an IRC server …");
    let lab = Lab::new()
        .with_master("demo", MASTER)
        .with_worker("w1")
        .with_ngircd();
    let joe = lab.person("joe", &[CHANNEL]);
    let channel = format!("[channel {CHANNEL}]");
    let irc = format!("use_colors = yes\nnotify_events = problem\n{channel}");
    println!("Starting the bot with this configuration:\n");
    for line in lab.config("demobot", "", &irc).lines() {
        println!("    {line}");
    }
    let _bot = lab.start_ready("demobot", "", &irc);
    let mut narrator = Narrator {
        joe,
        shown: 0,
        is_paced,
    };
    play(&lab, &mut narrator);

    if !is_paced {
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

const ANN: &str = "Ann Author <ann@example.org>";
const BOB: &str = "Bob Builder <bob@example.org>";

/// Three changes: a good one, one that breaks the build, and one that mends it.
fn play(lab: &Lab, narrator: &mut Narrator) {
    let master = lab.master();
    narrator.narrate(
        "Ann commits a change. Everything builds; the channel wants to hear of problems only.",
    );
    let revision = "3f786850e387550fdab836ed7e6dc881de23001b";
    master.change(ANN, revision, "Add the frob");
    master.wait_build("app", 1);
    narrator.say("demobot: status", "docs: idle");

    narrator.narrate("Bob commits a change that breaks the build.");
    let broken = master.dir.join("broken");
    fs::write(&broken, "").expect("a file in the master's directory");
    let revision = "89e6c98d92887913cadf06b2adb97f26cde4849b";
    master.change(BOB, revision, "Tune the frob");
    master.wait_started("app", 2);
    narrator.say("demobot: status app", "app: building #2");
    narrator.hear("app #2 \u{3}04failure\u{f} (was success)");
    narrator.say("demobot: last app", "app: #2");
    narrator.say(
        "demobot: notify on recovery",
        "notify is on for problem recovery",
    );

    narrator.narrate("Bob mends it.");
    fs::remove_file(&broken).expect("the file made above");
    let revision = "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15";
    master.change(BOB, revision, "Fix the frob");
    narrator.hear("app #3 \u{3}03success\u{f} (fixed)");
    narrator.say("demobot: list changes", "Fix the frob");
    narrator.say("demobot: help", "commands: ");
    narrator.show();
}
