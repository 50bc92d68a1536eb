//! What a supervisor receives at `$NOTIFY_SOCKET` (sd_notify(3)).

mod common;

use common::{Lab, Process, TIMEOUT, binary, config_dir, guarded, write_config};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A supervisor that has started a bot.
struct Supervisor {
    socket: UnixDatagram,
    bot: Process,
    dir: PathBuf,
    /// Every assignment that came, in order.
    received: Vec<String>,
}

impl Supervisor {
    /// With its socket in a file.
    fn start(config: &str) -> Supervisor {
        let dir = config_dir(config);
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Supervisor::launch(dir, socket, &path.display().to_string(), &[])
    }

    /// With its socket in Linux's abstract namespace, and more of the environment.
    fn start_abstract(config: &str, environment: &[(&str, &str)]) -> Supervisor {
        let dir = config_dir(config);
        let unique = dir.file_name().unwrap().display();
        let name = format!("buildbot-irc-test-{unique}");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Supervisor::launch(dir, socket, &format!("@{name}"), environment)
    }

    fn launch(
        dir: PathBuf,
        socket: UnixDatagram,
        address: &str,
        environment: &[(&str, &str)],
    ) -> Supervisor {
        Supervisor {
            socket,
            bot: start_bot(&dir, address, environment),
            dir,
            received: Vec::new(),
        }
    }

    /// Waits for an assignment; all that come before it are kept.
    #[track_caller]
    fn expect_like(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let end = Instant::now() + TIMEOUT;
        let mut found = false;
        while !found {
            let mut bytes = [0; 4096];
            let left = end.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).unwrap();
            let Ok(count) = self.socket.recv(&mut bytes) else {
                panic!("waited for {what}; received {:?}", self.received);
            };
            let text = std::str::from_utf8(&bytes[..count]).unwrap();
            for line in text.lines() {
                found |= wanted(line);
                self.received.push(line.to_string());
            }
        }
    }

    #[track_caller]
    fn expect(&mut self, assignment: &str) {
        self.expect_like(assignment, |line| line == assignment);
    }

    /// How many of the assignments begin like this.
    fn count(&self, start: &str) -> usize {
        let lines = self.received.iter();
        lines.filter(|line| line.starts_with(start)).count()
    }
}

fn start_bot(dir: &Path, address: &str, environment: &[(&str, &str)]) -> Process {
    let mut command = guarded(binary());
    command.args(["-c", "bot.conf", "-v"]).current_dir(dir);
    command.env("NOTIFY_SOCKET", address);
    command.env_remove("WATCHDOG_PID");
    command.env_remove("WATCHDOG_USEC");
    command.envs(environment.iter().copied());
    Process::start("bot", command)
}

/// A configuration of which neither server answers.
fn no_servers() -> String {
    Lab::new().config("bot", "", "[channel #lab]")
}

/// A boot must not fail because a network is down: ready means that the bot is.
#[test]
fn ready_though_nobody_answers() {
    for mut supervisor in [
        Supervisor::start(&no_servers()),
        Supervisor::start_abstract(&no_servers(), &[]),
    ] {
        supervisor.expect("READY=1");
        supervisor.expect_like("a status", |line| line.starts_with("STATUS="));
        supervisor.bot.signal("TERM");
        supervisor.expect("STOPPING=1");
        let received = &supervisor.received;
        assert_eq!(supervisor.count("READY=1"), 1, "{received:?}");
        assert_eq!(supervisor.count("WATCHDOG"), 0, "{received:?}");
        assert_eq!(supervisor.bot.wait_exit().code(), Some(0));
    }
}

#[test]
fn not_ready_with_a_wrong_configuration() {
    let mut supervisor = Supervisor::start("[buildbot]\nurl = nonsense\n");
    assert_eq!(supervisor.bot.wait_exit().code(), Some(78));
    supervisor.socket.set_nonblocking(true).unwrap();
    let received = supervisor.socket.recv(&mut [0; 4096]);
    assert!(received.is_err(), "something was sent");
}

#[test]
fn the_status_is_what_a_person_would_say() {
    let lab = Lab::new()
        .with_master(
            "status",
            "for name in ['app', 'doc', 'lib']:\n    gated(name)\n",
        )
        .with_worker("w1")
        .with_ngircd();
    let config = lab.config("bot", "", "[channel #ops]\n[channel #dev]");
    let mut supervisor = Supervisor::start(&config);
    supervisor.expect("READY=1");
    let expected = [
        "STATUS=#dev, #ops; 3 builders; 0 building",
        "STATUS=#ops, #dev; 3 builders; 0 building",
    ];
    supervisor.expect_like(expected[0], |line| expected.contains(&line));
    lab.master().force("app", &[]);
    lab.master().wait_started("app", 1);
    let building = "; 3 builders; 1 building";
    supervisor.expect_like(building, |line| line.ends_with(building));
    lab.master().release("app", common::SUCCESS);
    let idle = "; 3 builders; 0 building";
    supervisor.expect_like(idle, |line| line.ends_with(idle));
}

#[test]
fn the_watchdog_is_fed_where_there_is_one() {
    let watchdog = [("WATCHDOG_USEC", "1000000")];
    let mut supervisor = Supervisor::start_abstract(&no_servers(), &watchdog);
    supervisor.expect("READY=1");
    let start = Instant::now();
    for _ in 0..4 {
        let since = Instant::now();
        supervisor.expect("WATCHDOG=1");
        let elapsed = since.elapsed();
        assert!(elapsed < Duration::from_secs(1), "too late: {elapsed:?}");
    }
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_secs(1), "four in {elapsed:?}");
}

#[test]
fn reloading_is_told() {
    let lab = Lab::new().with_fake_irc();
    let config = lab.config("bot", "", "[channel #lab]");
    let mut supervisor = Supervisor::start(&config);
    supervisor.expect("READY=1");
    lab.fake_irc().accept().register();
    // With a bad configuration it goes on with the old one.
    for config in [config.as_str(), "nonsense\n"] {
        write_config(&supervisor.dir, config);
        supervisor.received.clear();
        supervisor.bot.signal("HUP");
        supervisor.expect("RELOADING=1");
        supervisor.expect("READY=1");
        let mut lines = supervisor.received.iter();
        let reloading = lines.position(|line| line == "RELOADING=1");
        assert!(reloading.is_some(), "{:?}", supervisor.received);
        let ready = lines.position(|line| line == "READY=1");
        assert!(ready.is_some(), "{:?}", supervisor.received);
    }
}
