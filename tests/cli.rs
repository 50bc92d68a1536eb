//! The command line, the configuration, the lock, the state file and signals: what scripts and
//! supervisors see of the bot.

mod common;

use common::{
    Answer, Bot, Client, FakeHttp, FakeIrc, FakePeer, Finished, Ngircd, NgircdOptions, Process,
    free_port, guarded, scratch, wait_for,
};
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");
const VERSION: &str = concat!("buildbot-irc ", env!("CARGO_PKG_VERSION"));
/// Nobody listens on port 1.
const AWAY: &str = "[buildbot]\nurl = http://127.0.0.1:1/\n";

/// A directory with this bot.conf.
fn folder(config: &str) -> PathBuf {
    let dir = scratch("cli");
    fs::write(dir.join("bot.conf"), config).unwrap();
    fs::set_permissions(dir.join("bot.conf"), Permissions::from_mode(0o600)).unwrap();
    dir
}

fn run(dir: &Path, args: &[&str]) -> Finished {
    Bot::run(dir, BOT, args, "")
}

/// Runs, and compares all that comes of it.
#[track_caller]
fn check(dir: &Path, args: &[&str], code: i32, stdout: &str, stderr: &str) {
    let done = run(dir, args);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (code, stdout, stderr),
        "{args:?}"
    );
}

fn config(irc: u16, rest: &str) -> String {
    format!("{AWAY}[irc]\nhost = 127.0.0.1\nport = {irc}\nnick = bot\n{rest}\n")
}

/// Takes the bot's connection through registration and into #lab.
fn lab(irc: &FakeIrc) -> FakePeer {
    let mut peer = irc.accept();
    peer.register();
    peer.expect("JOIN #lab");
    peer.send(":bot!~bot@127.0.0.1 JOIN #lab");
    peer
}

/// A master with one builder, which is offline and has built once.
fn master() -> FakeHttp {
    FakeHttp::start(|request| {
        let path = request.path.split('?').next().unwrap();
        let build = json!({
            "buildid": 1, "builderid": 1, "number": 7, "buildrequestid": 1, "started_at": 1_795_361_890,
            "complete": true, "complete_at": 1_795_361_895, "results": 2, "state_string": "failed 'make' (failure)"
        });
        Answer::Json(match path {
            "/config" => {
                json!({"versions": [["Buildbot", "4.3.0"]], "buildbotURL": "http://m/"}).to_string()
            }
            "/api/v2/builders" => {
                json!({"builders": [{"builderid": 1, "name": "mac os", "masterids": [1]}]})
                    .to_string()
            }
            path if path.ends_with("/builds") && !request.path.contains("buildid__ge") => {
                json!({"builds": [build]}).to_string()
            }
            _ => json!({"builds": []}).to_string(),
        })
    })
}

#[test]
fn options_and_their_exit_codes() {
    let dir = folder(AWAY);
    check(&dir, &["-V"], 0, &format!("{VERSION}\n"), "");
    check(&dir, &["--version"], 0, &format!("{VERSION}\n"), "");
    for help in ["-h", "--help"] {
        let done = run(&dir, &[help]);
        assert!(
            done.code == 0
                && done.stderr.is_empty()
                && done.stdout.starts_with("Usage: buildbot-irc "),
            "{done:?}"
        );
        for name in [
            "config FILE",
            "test-config",
            "execute COMMAND",
            "lock LOCKFILE",
            "verbose",
            "quiet",
            "help",
            "version",
        ] {
            assert!(
                done.stdout.contains(&format!(" --{name}")),
                "--{name} is not in {}",
                done.stdout
            );
        }
    }
    let usage = |args: &[&str], why: &str| {
        check(
            &dir,
            args,
            64,
            "",
            &format!("buildbot-irc: {why}; try --help\n"),
        )
    };
    usage(&["-v", "-q"], "-v and -q exclude each other");
    usage(&["-t", "-x", "status"], "-t and -x exclude each other");
    usage(&["--frobnicate"], "Unrecognized option: 'frobnicate'");
    usage(&["-z"], "Unrecognized option: 'z'");
    usage(&["-c"], "Argument to option 'c' missing");
    usage(&["-t", "-t"], "Option 'test-config' given more than once");
    usage(&["status"], "what is `status`? Quote the command behind -x");
    usage(
        &["-x", "status", "all"],
        "what is `all`? Quote the command behind -x",
    );
    let full = Command::new("sh")
        .args(["-c", "exec \"$0\" -x commands > /dev/full", BOT])
        .current_dir(&dir)
        .output();
    let full = full.unwrap();
    let why = "standard output: No space left on device (os error 28)\n";
    assert_eq!(
        (
            full.status.code(),
            String::from_utf8_lossy(&full.stderr).as_ref()
        ),
        (Some(74), why)
    );
}

#[test]
fn the_configuration_is_found_and_checked() {
    let dir = folder(AWAY);
    check(&dir, &["-t"], 0, "bot.conf: ok\n", "");
    let file = dir.join("bot.conf").to_str().unwrap().to_string();
    check(
        &scratch("elsewhere"),
        &["--config", &file, "--test-config"],
        0,
        &format!("{file}: ok\n"),
        "",
    );
    let missing = "none.conf: No such file or directory (os error 2)\n";
    check(&dir, &["-c", "none.conf", "-t"], 78, "", missing);
    check(&dir, &["-c", "none.conf"], 78, "", missing);
    if !Path::new("/etc/buildbot-irc/bot.conf").exists() {
        let done = run(&scratch("elsewhere"), &["-t"]);
        let why = "/etc/buildbot-irc/bot.conf: No such file or directory (os error 2); nor is there a bot.conf here";
        assert!(done.code == 78 && done.stderr.starts_with(why), "{done:?}");
    }
    // A bot needs [irc], -x does not.
    check(&dir, &[], 78, "", "a section [irc] is needed to run\n");
    fs::write(dir.join("bot.conf"), b"[buildbot]\nurl = \xff\n").unwrap();
    check(
        &dir,
        &["-t"],
        78,
        "",
        "bot.conf:2: a character that is no UTF-8\n",
    );
}

#[test]
fn every_error_of_a_broken_configuration_is_shown_with_its_line() {
    let dir = folder(
        "nick = early\n[buildbot]\nurl = gopher://m/\npoll_interval = soon\nuser = admin\n[irc]\nhost = irc\nhost = irc2\n\
         nik = bot\nport = 70000\nuse_ssl = perhaps\ntls_ca_file = /nonexistent/ca.pem\npassword_file = /nonexistent/p\n\
         notify_events = started exploded\nsasl = external\n[channel lab]\n[channel #a]\n[channel #A]\n\
         [authorization]\nforce = joe\nfly = everyone\n[bots]\n[bot]\nstate_file =\nnot a key\n",
    );
    let lines = [
        "1: `nick` stands before the first [section]",
        "2: `user` and `password` need each other",
        "3: `url`: `gopher://m/` does not begin with http:// or https://",
        "4: `poll_interval`: `soon` is not a duration like 90, 15s, 10m, 2h or 1d",
        "6: [irc] needs `nick`",
        "6: `sasl = external` needs `use_ssl = yes`, `tls_cert_file` and `tls_key_file`",
        "8: `host` was given before, in line 7",
        "9: `nik`: no such key in [irc]; did you mean `nick`?",
        "10: `port`: `70000` is not a port from 1 to 65535",
        "11: `use_ssl`: `perhaps` is neither yes nor no",
        "12: `tls_ca_file`: /nonexistent/ca.pem: No such file or directory (os error 2)",
        "13: `password_file`: /nonexistent/p: No such file or directory (os error 2)",
        "14: `notify_events`: unknown event `exploded`",
        "16: a channel's section is written [channel #name]",
        "18: [channel #A] was there before, in line 17",
        "20: `force`: `joe` is none of everyone, nobody, op, account:NAME, mask:NICK!USER@HOST (a nick alone proves nothing)",
        "21: `fly`: no such key in [authorization]",
        "22: unknown section [bots]; did you mean `bot`?",
        "24: `state_file`: needs a value",
        "25: expected `key = value`, a [section] or a # comment",
    ];
    for args in [&["-t"][..], &[], &["-x", "status"]] {
        let done = run(&dir, args);
        let shown: Vec<&str> = done
            .stderr
            .lines()
            .map(|line| line.strip_prefix("bot.conf:").unwrap_or(line))
            .collect();
        assert_eq!((done.code, done.stdout.as_str()), (78, ""));
        assert_eq!(shown, lines, "{args:?}");
    }
}

#[test]
fn a_password_that_everyone_can_read_gets_a_warning() {
    let with = "[irc]\nhost = irc\nnick = bot\npassword = tulip\n";
    for (config, mode, warned) in [
        (with, 0o644, true),
        (with, 0o600, false),
        (with, 0o640, false),
        ("", 0o644, false),
    ] {
        let dir = folder(&format!("{AWAY}{config}"));
        fs::set_permissions(dir.join("bot.conf"), Permissions::from_mode(mode)).unwrap();
        let done = run(&dir, &["-t"]);
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (0, "bot.conf: ok\n"),
            "{done:?}"
        );
        let warning = "bot.conf: holds a password and is readable by everyone; chmod o-r\n";
        assert_eq!(done.stderr.ends_with(warning), warned, "{mode:o}: {done:?}");
        assert!(!done.stderr.contains("tulip"), "{done:?}");
    }
}

#[test]
fn one_command_without_irc() {
    let master = master();
    let dir = folder(&format!("[buildbot]\nurl = {}\n", master.url()));
    let done = run(&dir, &["-x", "status all"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(
        done.stdout.starts_with("mac os: offline") && done.stdout.contains("#7 failure"),
        "{done:?}"
    );
    let done = run(&dir, &["-x", "last 'mac os'"]);
    assert!(
        done.code == 0 && done.stdout.contains("http://m/#/builders/1/builds/7"),
        "{done:?}"
    );
    check(
        &dir,
        &["--execute", "version"],
        0,
        &format!("{VERSION}; Buildbot 4.3.0 at http://m/\n"),
        "",
    );
    check(
        &dir,
        &["-x", "status mac-os"],
        65,
        "",
        "no builder mac-os; did you mean \"mac os\"?\n",
    );
    check(
        &dir,
        &["-x", "stauts"],
        65,
        "",
        "unknown command `stauts`; did you mean `status`?\n",
    );
    check(&dir, &["-x", ""], 65, "", "yes? try `help`\n");
    check(
        &dir,
        &["-x", "list"],
        65,
        "",
        "usage: list [all|N] builders|workers|changes\n",
    );
    check(
        &dir,
        &["-x", "mute 1h"],
        65,
        "",
        "mute: this works on IRC only\n",
    );
    let away = folder(AWAY);
    let refused = "127.0.0.1:1: Connection refused (os error 111)\n";
    check(
        &away,
        &["-x", "status"],
        69,
        "",
        &format!("GET /config: {refused}"),
    );
    check(
        &away,
        &["-x", "list changes"],
        69,
        "",
        &format!("GET /config: {refused}"),
    );
    let done = run(&away, &["-x", "help"]); // which needs no master
    assert!(
        done.code == 0 && done.stderr.is_empty() && done.stdout.contains("commands: "),
        "{done:?}"
    );
    drop(master);
}

#[test]
fn a_second_copy_is_silent_and_the_lock_ends_with_its_holder() {
    let dir = folder(&config(free_port(), ""));
    let start = || {
        let mut command = guarded(BOT);
        command.args(["-l", "lock"]).current_dir(&dir);
        let mut bot = Process::start("bot", command);
        bot.wait_for("its log", common::TIMEOUT, |bot| {
            bot.output().contains("IRC: ").then_some(())
        });
        bot
    };
    let mut first = start();
    assert_eq!(
        fs::read_to_string(dir.join("lock")).unwrap().trim(),
        first.pid().to_string()
    );
    check(&dir, &["-l", "lock"], 0, "", "");
    check(&dir, &["--lock", "lock", "-v"], 0, "", "");
    assert!(first.exited().is_none());
    first.kill();
    assert!(dir.join("lock").exists());
    let second = start();
    assert_eq!(
        fs::read_to_string(dir.join("lock")).unwrap().trim(),
        second.pid().to_string()
    );
    let done = run(&dir, &["-l", "nowhere/lock"]);
    assert_eq!((done.code, done.stdout.as_str()), (74, ""));
    assert_eq!(
        done.stderr,
        "nowhere/lock: No such file or directory (os error 2)\n"
    );
}

#[test]
fn the_state_file_must_be_writable_and_a_corrupt_one_is_moved_aside() {
    let irc = FakeIrc::start();
    let dir = folder(&config(irc.port, "[bot]\nstate_file = nowhere/state"));
    let done = run(&dir, &[]);
    assert_eq!((done.code, done.stdout.as_str()), (74, ""), "{done:?}");
    assert_eq!(
        done.stderr.lines().last(),
        Some("nowhere/state: No such file or directory (os error 2)")
    );
    assert!(!irc.knocked(), "it must not come to IRC first");

    for rubbish in [
        &b"rubbish"[..],
        b"",
        b"\xff\0",
        b"buildbot-irc state 1\nmark 7\n",
    ] {
        let text = config(irc.port, "[channel #lab]\n[bot]\nstate_file = state");
        let dir = folder(&text);
        fs::write(dir.join("state"), rubbish).unwrap();
        let mut bot = Bot::start_in(&dir, BOT, &text);
        bot.expect_log("; moved to state.bad, starting fresh");
        lab(&irc);
        assert_eq!(fs::read(dir.join("state.bad")).unwrap(), rubbish);
        let state = fs::read_to_string(dir.join("state")).unwrap();
        assert!(
            state.starts_with("buildbot-irc state ") && state.ends_with("}\n"),
            "{state}"
        );
        assert_eq!(
            fs::metadata(dir.join("state"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
    }
}

#[test]
fn settings_survive_a_restart_even_by_kill() {
    let irc = FakeIrc::start();
    let mut bot = Bot::start(
        BOT,
        &config(
            irc.port,
            "[channel #lab]\n[authorization]\njoin = everyone\n[bot]\nstate_file = state",
        ),
    );
    let mut peer = lab(&irc);
    peer.send(":joe!j@h PRIVMSG #lab :bot: notify on worker");
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG #lab :notify is on for worker"
    );
    peer.send(":joe!j@h PRIVMSG bot :join #den tulip");
    peer.expect("JOIN #den tulip");
    wait_for("the state file", common::TIMEOUT, || {
        let state = fs::read_to_string(bot.dir.join("state")).unwrap();
        let (_, json) = state.split_once('\n').unwrap();
        let state: serde_json::Value = serde_json::from_str(json).unwrap();
        (state["joined"]["#den"] == "tulip" && state["events"]["#lab"][0] == "worker").then_some(())
    });
    bot.kill9();
    bot.start_again();
    let mut peer = irc.accept();
    peer.register();
    assert_eq!(peer.expect("JOIN"), "JOIN #den,#lab tulip");
    peer.send(":bot!~bot@127.0.0.1 JOIN #lab");
    peer.send(":joe!j@h PRIVMSG #lab :bot: notify list");
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG #lab :notify is on for worker"
    );
}

#[test]
fn term_and_int_end_it_with_a_quit() {
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    for signal in ["TERM", "INT"] {
        let mut bot = Bot::start(BOT, &config(irc.port, "[channel #lab]"));
        joe.expect_contains("JOIN :#lab");
        bot.signal(signal);
        let quit = joe.expect_within(" QUIT ", Duration::from_secs(5));
        assert!(
            quit.starts_with(":bot!") && quit.ends_with("until next time\""),
            "{quit}"
        );
        assert_eq!(bot.wait_exit(), 0, "{}", bot.log());
    }
    // Also while there is no connection.
    for port in [free_port(), FakeIrc::start().port] {
        let mut bot = Bot::start(BOT, &config(port, ""));
        bot.expect_log("IRC: connecting to ");
        bot.signal("TERM");
        assert_eq!(bot.wait_exit(), 0, "{}", bot.log());
    }
}

#[test]
fn hup_takes_over_a_changed_configuration_without_a_new_connection() {
    let irc = FakeIrc::start();
    let mut bot = Bot::start(
        BOT,
        &config(
            irc.port,
            "notify_events = failure\n[channel #lab]\n[channel #old]",
        ),
    );
    let mut peer = lab(&irc);
    peer.send(":bot!~bot@127.0.0.1 JOIN #old");
    peer.barrier();
    let next = "notify_events = problem\n[channel #lab]\nnotify_events = worker\n[channel #new]\npassword = tulip";
    bot.configure(&config(irc.port, next));
    bot.signal("HUP");
    let mut lines = vec![peer.line(), peer.line()];
    lines.sort();
    assert_eq!(lines, ["JOIN #new tulip", "PART #old"]);
    peer.send(":bot!~bot@127.0.0.1 PART #old");
    peer.send(":bot!~bot@127.0.0.1 JOIN #new");
    bot.expect_log("configuration read again");
    for (channel, events) in [("#lab", "worker"), ("#new", "problem")] {
        peer.send(&format!(":joe!j@h PRIVMSG {channel} :bot: notify list"));
        assert_eq!(
            peer.expect("PRIVMSG"),
            format!("PRIVMSG {channel} :notify is on for {events}")
        );
    }

    // A broken one changes nothing, and each of its errors has a line.
    bot.configure(&config(
        irc.port,
        "notify_events = problm\n[channel #lab]\nuse_colors = perhaps",
    ));
    bot.signal("HUP");
    bot.expect_log("the old configuration stays");
    let log = bot.log();
    for error in [
        "bot.conf:7: `notify_events`: unknown event `problm`; did you mean `problem`?",
        "bot.conf:9: `use_colors`: `perhaps` is neither yes nor no",
    ] {
        assert!(
            log.lines().any(|line| line.ends_with(error)),
            "no line ends with {error:?}:\n{log}"
        );
    }
    peer.send(":joe!j@h PRIVMSG #new :bot: notify list");
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG #new :notify is on for problem"
    );

    // What needs a new connection is said.
    bot.configure(&config(irc.port, next).replace("nick = bot", "nick = tob"));
    bot.signal("HUP");
    bot.expect_log(
        "changes of the connections or of state_file need a restart; the rest takes effect now",
    );
    assert_eq!(peer.barrier(), Vec::<String>::new());
    assert_eq!(
        bot.log().matches("IRC: connecting to ").count(),
        1,
        "{}",
        bot.log()
    );
}

#[test]
fn quiet_says_nothing_while_all_is_well() {
    let (irc, master) = (FakeIrc::start(), master());
    let text = config(irc.port, "[channel #lab]").replace("http://127.0.0.1:1/", &master.url());
    let dir = folder(&(text.replace("[irc]", "event_stream = no\n[irc]")));
    let mut command = guarded(BOT);
    command.arg("-q").current_dir(&dir);
    let mut bot = Process::start("bot", command);
    let mut peer = lab(&irc);
    peer.barrier();
    master.expect("/api/v2/buildrequests");
    bot.signal("TERM");
    let status = wait_for("the end", common::TIMEOUT, || bot.exited());
    assert_eq!((status.code(), bot.output().as_str()), (Some(0), ""));
}
