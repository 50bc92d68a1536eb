//! `make demo`: a real master with a worker, a real IRC server, the bot, and a short scene between
//! them. Ends with an error if the scene does not go as it should.

#[path = "../common/mod.rs"]
mod common;

use common::{Bot, Client, Master, Ngircd, NgircdOptions, Worker, root};
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

/// The stage: what happens is told in one column, what is said in the channel in another.
struct Scene {
    joe: Client,
    shown: usize,
    paced: bool,
}

impl Scene {
    fn tell(&mut self, text: &str) {
        self.show();
        println!("\n  \x1b[3m{text}\x1b[0m");
        self.pause(1500);
    }

    /// Joe speaks; the answer must hold `answer`.
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
            println!("  {CHANNEL} {}", ansi(line));
            self.shown += 1;
        }
    }

    /// Only people need time to read.
    fn pause(&self, ms: u64) {
        if self.paced {
            std::thread::sleep(Duration::from_millis(ms));
        }
    }
}

/// The colours of IRC as those of the terminal.
fn ansi(line: &str) -> String {
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
    let paced = std::io::stdout().is_terminal();
    println!("Starting a Buildbot master with a worker, and an IRC server …");
    let master = Master::start("demo", MASTER);
    let _worker = Worker::start(&master, "w1");
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join(CHANNEL);
    let config = format!(
        "[buildbot]\nurl = {}\n[irc]\nhost = 127.0.0.1\nport = {}\nnick = demobot\nuse_colors = yes\n\
         notify_events = problem\n[channel {CHANNEL}]\n",
        master.url(),
        irc.port
    );
    println!("Starting the bot with this configuration:\n");
    config.lines().for_each(|line| println!("    {line}"));
    let binary = root().join("target/release/buildbot-irc");
    let mut bot = Bot::start(binary.to_str().expect("a path in UTF-8"), &config);
    joe.expect_contains("JOIN");
    bot.expect_log("event stream: subscribed");
    let mut scene = Scene {
        joe,
        shown: 0,
        paced,
    };

    scene.tell(
        "Ann commits a change. Everything builds; the channel wants to hear of problems only.",
    );
    master.change(
        "Ann Author <ann@example.org>",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "Add the frob",
    );
    master.wait_build("app", 1);
    scene.say("demobot: status", "docs: idle");

    scene.tell("Bob commits a change that breaks the build.");
    let broken = master.dir.join("broken");
    fs::write(&broken, "").expect("a file in the scene's own folder");
    master.change(
        "Bob Builder <bob@example.org>",
        "89e6c98d92887913cadf06b2adb97f26cde4849b",
        "Tune the frob",
    );
    master.wait_started("app", 2);
    scene.say("demobot: status app", "app: building #2");
    scene.hear("app #2 \u{3}04failure\u{f} (was success)");
    scene.say("demobot: last app", "app: #2");
    scene.say(
        "demobot: notify on recovery",
        "notify is on for problem recovery",
    );

    scene.tell("Bob mends it.");
    fs::remove_file(&broken).expect("the file made above");
    master.change(
        "Bob Builder <bob@example.org>",
        "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15",
        "Fix the frob",
    );
    scene.hear("app #3 \u{3}03success\u{f} (fixed)");
    scene.say("demobot: list changes", "Fix the frob");
    scene.say("demobot: help", "commands: ");
    scene.show();

    if !paced {
        return println!("\nThe scene went as it should.");
    }
    println!("\nIt is your turn. The bot and its servers stay until you press Ctrl-C:");
    println!(
        "    an IRC client: 127.0.0.1 port {}, no TLS, channel {CHANNEL}",
        irc.port
    );
    println!("    a browser:     {}", master.url());
    loop {
        std::thread::park();
    }
}
