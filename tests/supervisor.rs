//! What a supervisor hears at `$NOTIFY_SOCKET` (sd_notify(3)).

mod common;

use common::{
    FakeIrc, Master, Ngircd, NgircdOptions, Process, TIMEOUT, Worker, free_port, guarded, scratch,
};
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");

/// A supervisor that has started a bot.
struct Supervisor {
    socket: UnixDatagram,
    bot: Process,
    dir: PathBuf,
    /// Every assignment that came, in order.
    heard: Vec<String>,
}

impl Supervisor {
    /// In a socket file, or in Linux's abstract namespace.
    fn start(name: &str, in_file: bool, watchdog: Option<&str>, config: &str) -> Supervisor {
        let dir = scratch(name);
        let (socket, address) = match in_file {
            true => (
                UnixDatagram::bind(dir.join("notify")).unwrap(),
                dir.join("notify").display().to_string(),
            ),
            false => {
                let name = format!("buildbot-irc-test-{}-{name}", std::process::id());
                let address = SocketAddr::from_abstract_name(&name).unwrap();
                (
                    UnixDatagram::bind_addr(&address).unwrap(),
                    format!("@{name}"),
                )
            }
        };
        configure(&dir, config);
        let mut command = guarded(BOT);
        command
            .args(["-c", "bot.conf", "-v"])
            .current_dir(&dir)
            .env("NOTIFY_SOCKET", address);
        command
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC");
        command.envs(watchdog.map(|period| ("WATCHDOG_USEC", period)));
        Supervisor {
            socket,
            bot: Process::start("bot", command),
            dir,
            heard: Vec::new(),
        }
    }

    /// Waits for an assignment; all that come before it are kept.
    #[track_caller]
    fn expect(&mut self, wanted: impl Fn(&str) -> bool, what: &str) -> String {
        let end = Instant::now() + TIMEOUT;
        loop {
            let mut bytes = [0; 4096];
            let left = end
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).unwrap();
            let Ok(count) = self.socket.recv(&mut bytes) else {
                panic!(
                    "waited for {what}; heard {:?}; its output:\n{}",
                    self.heard,
                    self.bot.output()
                );
            };
            let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            self.heard.extend(lines.iter().map(|line| line.to_string()));
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return line.to_string();
            }
        }
    }

    #[track_caller]
    fn hear(&mut self, wanted: &str) {
        self.expect(|line| line == wanted, wanted);
    }
}

fn configure(dir: &Path, config: &str) {
    fs::write(dir.join("bot.conf"), config).unwrap();
}

fn config(master: &str, irc: u16, rest: &str) -> String {
    format!(
        "[buildbot]\nurl = {master}\n[irc]\nhost = 127.0.0.1\nport = {irc}\nnick = bot\n{rest}\n"
    )
}

/// A boot must not fail because a network is down: ready means that we are.
#[test]
fn ready_though_nobody_answers() {
    for in_file in [true, false] {
        let config = config("http://127.0.0.1:1/", free_port(), "[channel #lab]");
        let mut supervisor = Supervisor::start("dead", in_file, None, &config);
        supervisor.hear("READY=1");
        supervisor.expect(|line| line.starts_with("STATUS="), "a status");
        supervisor.bot.signal("TERM");
        supervisor.hear("STOPPING=1");
        let ready = supervisor
            .heard
            .iter()
            .filter(|line| *line == "READY=1")
            .count();
        assert_eq!(ready, 1, "{:?}", supervisor.heard);
        assert!(
            !supervisor
                .heard
                .iter()
                .any(|line| line.starts_with("WATCHDOG")),
            "{:?}",
            supervisor.heard
        );
        let ended = common::wait_for("the end", TIMEOUT, || supervisor.bot.exited());
        assert_eq!(ended.code(), Some(0), "{}", supervisor.bot.output());
    }
}

#[test]
fn not_ready_with_a_wrong_configuration() {
    let mut supervisor = Supervisor::start("wrong", true, None, "[buildbot]\nurl = nonsense\n");
    let ended = common::wait_for("the end", TIMEOUT, || supervisor.bot.exited());
    assert_eq!(ended.code(), Some(78));
    supervisor.socket.set_nonblocking(true).unwrap();
    assert!(
        supervisor.socket.recv(&mut [0; 4096]).is_err(),
        "something was told"
    );
}

#[test]
fn the_status_is_what_a_person_would_say() {
    let irc = Ngircd::start(NgircdOptions::default());
    let master = Master::start(
        "status",
        "for name in ['app', 'doc', 'lib']:\n    gated(name)\n",
    );
    let _worker = Worker::start(&master, "w1");
    let config = config(&master.url(), irc.port, "[channel #ops]\n[channel #dev]");
    let mut supervisor = Supervisor::start("status", true, None, &config);
    supervisor.hear("READY=1");
    let expected = [
        "STATUS=#dev, #ops; 3 builders; 0 building",
        "STATUS=#ops, #dev; 3 builders; 0 building",
    ];
    supervisor.expect(|line| expected.contains(&line), expected[0]);
    master.force("app", &[]);
    master.wait_started("app", 1);
    supervisor.expect(
        |line| line.ends_with("; 3 builders; 1 building"),
        "1 building",
    );
    master.release("app", common::SUCCESS);
    supervisor.expect(
        |line| line.ends_with("; 3 builders; 0 building"),
        "0 building",
    );
}

#[test]
fn the_watchdog_is_fed_where_there_is_one() {
    let config = config("http://127.0.0.1:1/", free_port(), "[channel #lab]");
    let mut supervisor = Supervisor::start("watchdog", false, Some("1000000"), &config);
    supervisor.hear("READY=1");
    let begin = Instant::now();
    for _ in 0..4 {
        let asked = Instant::now();
        supervisor.hear("WATCHDOG=1");
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "a second without a word would have been its end"
        );
    }
    assert!(
        begin.elapsed() > Duration::from_millis(1000),
        "four words in {:?}: too many",
        begin.elapsed()
    );
}

#[test]
fn reloading_is_told() {
    let irc = FakeIrc::start();
    let text = config("http://127.0.0.1:1/", irc.port, "[channel #lab]");
    let mut supervisor = Supervisor::start("reload", true, None, &text);
    supervisor.hear("READY=1");
    irc.accept().register();
    // A good configuration and a bad one: it goes on with the old.
    for text in [text.as_str(), "nonsense\n"] {
        configure(&supervisor.dir, text);
        supervisor.heard.clear();
        supervisor.bot.signal("HUP");
        supervisor.hear("RELOADING=1");
        supervisor.hear("READY=1");
        let at = |name: &str| {
            let found = supervisor
                .heard
                .iter()
                .position(|line| line.starts_with(name));
            found.unwrap_or_else(|| panic!("no {name} in {:?}", supervisor.heard))
        };
        assert!(at("RELOADING=1") < at("READY=1"));
    }
}
