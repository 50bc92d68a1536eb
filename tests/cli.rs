//! The command line, the configuration, the lock, the state file and signals: what scripts and
//! supervisors see of the bot.

mod common;

use common::{
    Answer, Bot, FakeHttp, FakeMaster, Finished, Lab, NO_MASTER, Process, binary, config_dir,
    free_port, guarded, run, scratch,
};
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const VERSION: &str = concat!("buildbot-irc ", env!("CARGO_PKG_VERSION"));

/// A configuration without IRC, whose master refuses connections.
fn no_irc() -> String {
    format!("[buildbot]\nurl = {NO_MASTER}\n")
}

/// Runs the program, and compares its exit code and all it writes.
#[track_caller]
fn check(dir: &Path, args: &[&str], code: i32, stdout: &str, stderr: &str) {
    let done = Bot::run(dir, args);
    assert_eq!(done.stderr, stderr, "{args:?}");
    assert_eq!(done.stdout, stdout, "{args:?}");
    assert_eq!(done.code, code, "{args:?}");
}

/// It succeeds without a word on stderr, and its reply holds this.
#[track_caller]
fn expect_reply(done: &Finished, text: &str) {
    assert_eq!(done.stderr, "", "{done:?}");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains(text), "{done:?}");
}

/// The permissions of a file.
fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// A master with one builder, which is offline and has built once.
fn master() -> FakeHttp {
    FakeHttp::start(|request| {
        let build = json!({
            "buildid": 1, "builderid": 1, "number": 7, "buildrequestid": 1, "started_at": 1_795_361_890,
            "complete": true, "complete_at": 1_795_361_895, "results": 2, "state_string": "failed 'make' (failure)"
        });
        let is_there = request.number("buildid__ge").is_none_or(|first| first <= 1);
        match request.resource() {
            "/config" => Answer::json(
                json!({"versions": [["Buildbot", "4.3.0"]], "buildbotURL": "http://m/"}),
            ),
            "/api/v2/builders" => Answer::json(
                json!({"builders": [{"builderid": 1, "name": "mac os", "masterids": [1]}]}),
            ),
            path if path.ends_with("/builds") && is_there => {
                Answer::json(json!({"builds": [build]}))
            }
            _ => Answer::json(json!({"builds": []})),
        }
    })
}

#[test]
fn options_and_their_exit_codes() {
    let dir = config_dir(&no_irc());
    check(&dir, &["-V"], 0, &format!("{VERSION}\n"), "");
    check(&dir, &["--version"], 0, &format!("{VERSION}\n"), "");
    for help in ["-h", "--help"] {
        let done = Bot::run(&dir, &[help]);
        expect_reply(&done, "Usage: buildbot-irc ");
        for name in [
            "config FILE",
            "test-config",
            "execute COMMAND",
            "lock LOCKFILE",
            "print-config",
            "verbose",
            "quiet",
            "help",
            "version",
        ] {
            let option = format!(" --{name}");
            assert!(done.stdout.contains(&option), "no{option}: {done:?}");
        }
    }
    let usage = |args: &[&str], error: &str| {
        let stderr = format!("buildbot-irc: {error}; try --help\n");
        check(&dir, args, 64, "", &stderr);
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
}

#[test]
fn the_example_configuration_is_in_the_program() {
    let example = include_str!("../bot.conf.example");
    check(&scratch("config"), &["--print-config"], 0, example, "");
}

#[test]
fn a_reply_that_cannot_be_written_ends_with_code_74() {
    let dir = config_dir(&no_irc());
    let script = "exec \"$0\" -x commands > /dev/full";
    let done = run("sh", &dir, &["-c", script, &binary()]);
    assert_eq!(
        done.stderr,
        "standard output: No space left on device (os error 28)\n"
    );
    assert_eq!(done.code, 74);
}

#[test]
fn the_configuration_is_found_and_checked() {
    let dir = config_dir(&no_irc());
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
        let done = Bot::run(&scratch("elsewhere"), &["-t"]);
        let error = "/etc/buildbot-irc/bot.conf: No such file or directory (os error 2); nor is there a bot.conf here";
        assert!(done.stderr.starts_with(error), "{done:?}");
        assert_eq!(done.code, 78, "{done:?}");
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
    let dir = config_dir(
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
        let done = Bot::run(&dir, args);
        let shown = done.stderr.lines();
        let shown: Vec<&str> = shown
            .map(|line| line.strip_prefix("bot.conf:").unwrap_or(line))
            .collect();
        assert_eq!(shown, lines, "{args:?}");
        assert_eq!(done.stdout, "", "{args:?}");
        assert_eq!(done.code, 78, "{args:?}");
    }
}

#[test]
fn a_password_that_everyone_can_read_gets_a_warning() {
    let with = "[irc]\nhost = irc\nnick = bot\npassword = tulip\n";
    let warning = "bot.conf: holds a password and is readable by everyone; chmod o-r\n";
    for (config, mode, warned) in [
        (with, 0o644, true),
        (with, 0o600, false),
        (with, 0o640, false),
        ("", 0o644, false),
    ] {
        let dir = config_dir(&format!("{}{config}", no_irc()));
        fs::set_permissions(dir.join("bot.conf"), Permissions::from_mode(mode)).unwrap();
        let done = Bot::run(&dir, &["-t"]);
        assert_eq!(done.stdout, "bot.conf: ok\n", "{done:?}");
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(done.stderr.contains(warning), warned, "{mode:o}: {done:?}");
        assert!(!done.stderr.contains("tulip"), "{done:?}");
    }
}

#[test]
fn one_command_without_irc() {
    let master = master();
    let dir = config_dir(&format!("[buildbot]\nurl = {}\n", master.url()));
    let done = Bot::run(&dir, &["-x", "status all"]);
    expect_reply(&done, "#7 failure");
    assert!(done.stdout.starts_with("mac os: offline"), "{done:?}");
    let done = Bot::run(&dir, &["-x", "last 'mac os'"]);
    expect_reply(&done, "http://m/#/builders/1/builds/7");
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
    let away = config_dir(&no_irc());
    let refused = "the master at http://127.0.0.1:1/ does not answer: GET /config: 127.0.0.1:1: \
                   Connection refused (os error 111)\n";
    check(&away, &["-x", "status"], 69, "", refused);
    check(&away, &["-x", "list changes"], 69, "", refused);
    let done = Bot::run(&away, &["-x", "help"]); // which needs no master
    expect_reply(&done, "commands: ");
}

#[test]
fn a_second_copy_is_silent_and_the_lock_ends_with_its_holder() {
    let dir = config_dir(&Lab::new().config("bot", "", ""));
    let start = || {
        let mut command = guarded(binary());
        command.args(["-l", "lock"]).current_dir(&dir);
        let mut bot = Process::start("bot", command);
        bot.wait_for("its log", common::TIMEOUT, |bot| {
            bot.output().contains("IRC: ").then_some(())
        });
        bot
    };
    let lock = dir.join("lock");
    let holder = || fs::read_to_string(&lock).unwrap().trim().to_string();
    let mut first = start();
    assert_eq!(holder(), first.pid().to_string());
    check(&dir, &["-l", "lock"], 0, "", "");
    check(&dir, &["--lock", "lock", "-v"], 0, "", "");
    assert!(first.exited().is_none());
    first.kill();
    assert!(lock.exists());
    let second = start();
    assert_eq!(holder(), second.pid().to_string());
    check(
        &dir,
        &["-l", "nowhere/lock"],
        74,
        "",
        "nowhere/lock: No such file or directory (os error 2)\n",
    );
}

#[test]
fn the_state_file_must_be_writable() {
    let lab = Lab::new().with_fake_irc();
    let dir = config_dir(&lab.config("bot", "", "[bot]\nstate_file = nowhere/state"));
    let done = Bot::run(&dir, &[]);
    assert_eq!(done.code, 74, "{done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
    let error = "nowhere/state: No such file or directory (os error 2)";
    assert_eq!(done.stderr.lines().last(), Some(error));
    let connected = lab.fake_irc().has_connection();
    assert!(!connected, "it must not connect to IRC first");

    let error = "nowhere: cannot write there: No such file or directory (os error 2)";
    let error = format!("bot.conf: `state_file`: {error}\n");
    check(&dir, &["-t"], 78, "", &error);
}

/// A slip of the pen would silence a channel for ever.
#[test]
fn patterns_that_match_nothing_are_named_where_the_master_answers() {
    let lab = Lab::new().with_fake_master(FakeMaster::new(2).serve());
    let irc = "builders = b1 lnux*\n[channel #lab]\ntags = relaese";
    let dir = config_dir(&lab.config("bot", "", irc));
    let done = Bot::run(&dir, &["-t"]);
    assert_eq!(done.stdout, "bot.conf: ok\n", "{done:?}");
    assert_eq!(done.code, 0, "{done:?}");
    for warning in [
        "bot.conf: [irc] `builders`: `lnux*` matches no builder\n",
        "bot.conf: [channel #lab] `tags`: no builder is tagged `relaese`\n",
    ] {
        assert!(done.stderr.contains(warning), "{done:?}");
    }
    assert!(!done.stderr.contains("`b1`"), "{done:?}");

    let away = config_dir(&Lab::new().config("bot", "", irc));
    let done = Bot::run(&away, &["-t"]);
    assert_eq!(done.code, 0, "that is no fault of the file: {done:?}");
    assert!(done.stderr.contains("are not compared"), "{done:?}");
}

/// What cannot be read may be good: it stays where it is.
#[test]
fn a_state_file_that_cannot_be_read_ends_the_bot() {
    let lab = Lab::new().with_fake_irc();
    let dir = config_dir(&lab.config("bot", "", "[bot]\nstate_file = state"));
    fs::create_dir(dir.join("state")).unwrap();
    fs::write(dir.join("state/inside"), "").unwrap();
    check(&dir, &[], 74, "", "state: Is a directory (os error 21)\n");
    assert!(dir.join("state/inside").exists());
    assert!(!dir.join("state.bad").exists());
    let error = "bot.conf: `state_file`: state: is a directory\n";
    check(&dir, &["-t"], 78, "", error);
}

#[test]
fn two_bots_do_not_share_a_state_file() {
    let lab = Lab::new().with_fake_irc();
    let config = lab.config(
        "bot",
        "",
        "[channel #lab]\nnotify_events = failure\n[bot]\nstate_file = state",
    );
    let mut first = Bot::start(&config);
    let _peer = lab.accept();
    let error = "state: another bot uses this state file; each needs one of its own\n";
    check(&first.dir, &[], 74, "", error);
    check(&first.dir, &["-t"], 0, "bot.conf: ok\n", "");
    first.kill9();
    first.start_again();
    let _peer = lab.accept();
}

#[test]
fn a_corrupt_state_file_is_moved_aside() {
    let lab = Lab::new().with_fake_irc();
    for corrupt in [
        &b"rubbish"[..],
        b"",
        b"\xff\0",
        b"buildbot-irc state 1\nmark 7\n",
    ] {
        let config = lab.config("bot", "", "[channel #lab]\n[bot]\nstate_file = state");
        let dir = scratch("state");
        let file = dir.join("state");
        fs::write(&file, corrupt).unwrap();
        let mut bot = Bot::start_in(&dir, &config);
        bot.expect_log("; moved to state.bad, starting afresh");
        let _peer = lab.accept();
        assert_eq!(fs::read(dir.join("state.bad")).unwrap(), corrupt);
        let state = fs::read_to_string(&file).unwrap();
        assert!(state.starts_with("buildbot-irc state "), "{state}");
        assert!(state.ends_with("}\n"), "{state}");
        assert_eq!(mode(&file), 0o600);
    }
}

#[test]
fn settings_survive_a_kill() {
    let lab = Lab::new().with_fake_irc();
    let rules = "[authorization]\njoin = everyone";
    let state = "[bot]\nstate_file = state";
    let mut bot = lab.start(&format!("[channel #lab]\n{rules}\n{state}"));
    let mut peer = lab.accept();
    peer.say("#lab", "bot: notify on worker");
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG #lab :notify is on for worker"
    );
    peer.say("bot", "join #den tulip");
    peer.expect("JOIN #den tulip");
    bot.wait_state("the channel and the event", |state| {
        state["joined"]["#den"] == "tulip" && state["events"]["#lab"][0] == "worker"
    });
    bot.kill9();
    bot.start_again();
    let mut peer = lab.fake_irc().accept();
    peer.register();
    assert_eq!(peer.expect("JOIN"), "JOIN #den,#lab tulip");
    peer.send(":bot!~bot@127.0.0.1 JOIN #lab");
    peer.say("#lab", "bot: notify list");
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG #lab :notify is on for worker"
    );
}

#[test]
fn term_and_int_end_it_with_a_quit() {
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    for signal in ["TERM", "INT"] {
        let mut bot = lab.start("[channel #lab]");
        joe.expect_contains("JOIN :#lab");
        bot.signal(signal);
        let quit = joe.expect_within(" QUIT ", Duration::from_secs(5));
        assert!(quit.starts_with(":bot!"), "{quit}");
        assert!(quit.ends_with("until next time\""), "{quit}");
        bot.expect_exit(0);
    }
}

#[test]
fn term_ends_it_without_a_connection_too() {
    let mut refusing = Lab::new();
    refusing.irc_port = free_port();
    let silent = Lab::new().with_fake_irc();
    for lab in [refusing, silent] {
        let mut bot = lab.start("");
        bot.expect_log("IRC: connecting to ");
        bot.signal("TERM");
        bot.expect_exit(0);
    }
}

#[test]
fn hup_takes_over_a_changed_configuration_without_a_new_connection() {
    let lab = Lab::new().with_fake_irc();
    let first = "notify_events = failure\n[channel #lab]\n[channel #old]";
    let mut bot = lab.start(first);
    let mut peer = lab.fake_irc().accept_into("#lab,#old");
    peer.barrier();
    let next = "notify_events = problem\n[channel #lab]\nnotify_events = worker\n[channel #new]\npassword = tulip";
    let next = lab.config("bot", "", next);
    bot.configure(&next);
    bot.signal("HUP");
    let mut lines = vec![peer.line(), peer.line()];
    lines.sort();
    assert_eq!(lines, ["JOIN #new tulip", "PART #old"]);
    peer.send(":bot!~bot@127.0.0.1 PART #old");
    peer.send(":bot!~bot@127.0.0.1 JOIN #new");
    bot.expect_log("configuration read again");
    for (channel, events) in [("#lab", "worker"), ("#new", "problem")] {
        peer.say(channel, "bot: notify list");
        assert_eq!(
            peer.expect("PRIVMSG"),
            format!("PRIVMSG {channel} :notify is on for {events}")
        );
    }

    // A broken one changes nothing, and each of its errors has a line.
    let broken = "notify_events = problm\n[channel #lab]\nuse_colors = perhaps";
    bot.configure(&lab.config("bot", "", broken));
    bot.signal("HUP");
    bot.expect_log("the old configuration stays");
    let log = bot.log();
    for error in [
        "bot.conf:7: `notify_events`: unknown event `problm`; did you mean `problem`?",
        "bot.conf:9: `use_colors`: `perhaps` is neither yes nor no",
    ] {
        let found = log.lines().any(|line| line.ends_with(error));
        assert!(found, "no line ends with {error:?}");
    }
    peer.say("#new", "bot: notify list");
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG #new :notify is on for problem"
    );

    // The log says what needs a restart.
    bot.configure(&next.replace("nick = bot", "nick = tob"));
    bot.signal("HUP");
    bot.expect_log(
        "changes of the connections or of state_file need a restart; the rest takes effect now",
    );
    peer.expect_silence();
    assert_eq!(bot.try_exit(), None);
    bot.assert_logged("IRC: connecting to ", 1);
}

#[test]
fn quiet_logs_nothing_while_all_is_well() {
    let lab = Lab::new().with_fake_irc().with_fake_master(master());
    let dir = config_dir(&lab.config("bot", "event_stream = no", "[channel #lab]"));
    let mut command = guarded(binary());
    command.arg("-q").current_dir(&dir);
    let mut bot = Process::start("bot", command);
    let mut peer = lab.accept();
    peer.barrier();
    lab.fake_master().wait_polls(1);
    bot.signal("TERM");
    assert_eq!(bot.wait_exit().code(), Some(0));
    assert_eq!(bot.output(), "");
}
