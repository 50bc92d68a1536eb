//! The bot and its master: away, slow, half-hearted or broken, and how often it is asked. On IRC the bot
//! answers all the same.

mod common;

use common::{
    Answer, Bot, Certificates, Client, FakeHttp, FakeIrc, FakePeer, Finished, Master, Ngircd,
    NgircdOptions, Proxy, Request, SUCCESS, TIMEOUT, Worker, World, scratch, wait_for,
};
use serde_json::json;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");
/// A reply that waits for nobody, on a machine that is busy with other tests.
const PROMPT: Duration = Duration::from_secs(5);

/// The configuration for a master and an IRC server; `more` goes into `[buildbot]`.
fn config(master: &str, more: &str, irc: u16) -> String {
    format!(
        "[buildbot]\nurl = {master}\n{more}\n[irc]\nhost = 127.0.0.1\nport = {irc}\nnick = bot\n\
         notify_events = finished\n[channel #lab]\n"
    )
}

/// One command against a master, with `-x`.
fn execute(master: &str, more: &str, command: &str) -> Finished {
    let dir = scratch("execute");
    fs::write(
        dir.join("bot.conf"),
        format!("[buildbot]\nurl = {master}\n{more}\n"),
    )
    .unwrap();
    Bot::run(&dir, BOT, &["-x", command], "")
}

/// An event stream with these bytes behind the handshake, then silence.
fn stream(bytes: &[u8]) -> Answer {
    let mut text =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for part in [b"event: handshake\ndata: 123\n\n", bytes]
        .concat()
        .split_inclusive(|byte| *byte == b'\n')
    {
        text.extend(format!("{:x}\r\n", part.len()).as_bytes());
        text.extend([part, b"\r\n"].concat());
    }
    Answer::Stall(text)
}

/// Takes the bot's connection through registration and into #lab.
fn lab(irc: &FakeIrc) -> FakePeer {
    let mut peer = irc.accept();
    let nick = peer.register();
    peer.expect("JOIN #lab");
    peer.send(&format!(":{nick}!~bot@127.0.0.1 JOIN #lab"));
    peer
}

#[test]
fn a_master_that_comes_and_goes_never_stops_the_bot() {
    let mut master = Master::start("away", "gated('linux')");
    let irc = Ngircd::start(NgircdOptions::default());
    let (joe, ann) = (
        Client::connect(irc.port, "joe"),
        Client::connect(irc.port, "ann"),
    );
    joe.join("#lab");
    let proxy = Proxy::start(master.port);
    master.stop();
    let url = format!("http://127.0.0.1:{}/", proxy.port);
    let conf = config(&url, "timeout = 6\npoll_interval = 1", irc.port)
        .replace("= finished", "= started finished");
    let mut bot = Bot::start(BOT, &conf);
    joe.expect_contains("JOIN");
    bot.expect_log("the master does not answer: GET /config: ");
    joe.say("bot", "status");
    ann.say("bot", "version");
    joe.expect_contains(" PRIVMSG joe :the master has not answered yet: GET /config: ");
    ann.expect_contains(concat!(
        "buildbot-irc ",
        env!("CARGO_PKG_VERSION"),
        "; the master has not told its version"
    ));

    master.start_again();
    bot.expect_log("the master answers again");
    bot.expect_log("event stream: subscribed");
    let _worker = Worker::start(&master, "w1");
    master.force("linux", &[]);
    joe.expect_contains(" PRIVMSG #lab :linux #1 started");
    master.wait_started("linux", 1);
    ann.say("bot", "status linux");
    ann.expect_contains(" PRIVMSG ann :linux: building #1");

    master.change("Ann", "r1", "Add the frob");
    ann.say("bot", "list changes");
    ann.expect_contains(" PRIVMSG ann :r1 on main by Ann: Add the frob");

    // It hangs while several people ask.
    proxy.freeze();
    ann.say("bot", "list 1 changes");
    ann.expect_within(" PRIVMSG ann :r1 on main by Ann: Add the frob", PROMPT);
    joe.say("bot", "list changes");
    joe.say("bot", "status");
    ann.say("bot", "source");
    ann.expect_within(" PRIVMSG ann :Buildbot: ", PROMPT);
    ann.say("bot", "list builders");
    ann.expect_within(" PRIVMSG ann :1 builder: linux", PROMPT);
    bot.expect_log_times("Z the master does not answer: ", 2);
    ann.say("bot", "list builders");
    ann.expect_within(" PRIVMSG ann :the master does not answer; as of ", PROMPT);
    joe.expect_contains(
        " PRIVMSG joe :the master does not answer: GET /api/v2/changes: no answer in time",
    );
    joe.expect_contains("linux: building #1");

    // It restarts, which ends the build.
    proxy.thaw();
    proxy.cut();
    master.restart();
    bot.expect_log_times("the master answers again", 2);
    joe.expect_contains(" PRIVMSG #lab :linux #1 cancelled");
    assert_eq!(
        bot.log()
            .matches(">> PRIVMSG #lab :linux #1 cancelled")
            .count(),
        1,
        "{}",
        bot.log()
    );
}

#[test]
fn https_with_an_authority_of_its_own() {
    let master = Master::start_tls("tls", "gated('linux')");
    let ca = format!("tls_ca_file = {}", Certificates::get().path("ca.pem"));
    let done = execute(&master.url(), &ca, "list all builders");
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "linux [offline]\n"),
        "{done:?}"
    );
    let refused = "the certificate is refused: unable to get local issuer certificate";
    let done = execute(&master.url(), "", "status");
    assert!(done.code == 69 && done.stderr.contains(refused), "{done:?}");
    for (certificate, why) in [
        ("wrong", "IP address mismatch"),
        ("expired", "certificate has expired"),
    ] {
        let fake = FakeHttp::start_tls(Some(certificate), |_| Answer::Json("{}".into()));
        let done = execute(&format!("https://127.0.0.1:{}/", fake.port), &ca, "status");
        assert!(done.code == 69 && done.stderr.contains(why), "{done:?}");
        assert_eq!(fake.requests().len(), 0);
    }
    let done = execute(
        &master.url().replace("https", "http"),
        "timeout = 2",
        "status",
    );
    assert!(
        done.code == 69 && done.stderr.starts_with("GET /config: "),
        "{done:?}"
    );
}

#[test]
fn a_base_path_is_kept() {
    let world = World::new(1);
    let fake = FakeHttp::start(move |request| match request.path.strip_prefix("/ci/bb/") {
        Some(path) => world.answer(&Request {
            path: format!("/{path}"),
            ..request.clone()
        }),
        None => Answer::Status("404 Not Found", String::new(), String::new()),
    });
    for end in ["ci/bb", "ci/bb/"] {
        let done = execute(&(fake.url() + end), "", "version");
        assert_eq!(done.code, 0, "{done:?}");
        assert!(
            done.stdout.ends_with("; Buildbot 4.3.0 at http://m/\n"),
            "{done:?}"
        );
    }
    let irc = FakeIrc::start();
    let _bot = Bot::start(BOT, &config(&(fake.url() + "ci/bb"), "", irc.port));
    fake.expect("/ci/bb/sse/listen/");
    assert!(
        fake.requests()
            .iter()
            .all(|request| request.path.starts_with("/ci/bb/")),
        "{:?}",
        fake.requests()
    );
}

#[test]
fn broken_answers_are_told_in_a_sentence() {
    let head = "HTTP/1.1 200 OK\r\n";
    let length = |n: usize, body: &str| {
        Answer::Raw(format!("{head}Content-Length: {n}\r\n\r\n{body}").into_bytes())
    };
    let chunked = |body: &str| {
        Answer::Raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n{body}").into_bytes())
    };
    let status = |line, body: &str| Answer::Status(line, String::new(), body.into());
    let endless =
        |start: &str, again: &str| Answer::Endless(start.into(), again.repeat(1000).into());
    type Case<'a> = (&'a (dyn Fn() -> Answer + Send + Sync), &'a str);
    let cases: [Case; 17] = [
        (
            &|| length(90, "{\"builders\": ["),
            "the connection ended early",
        ),
        (
            &|| Answer::Json("{\"builders\": [".into()),
            "the answer is not what it should be: EOF while parsing",
        ),
        (
            &|| Answer::Json("{\"builders\": {}}".into()),
            "the answer is not what it should be: invalid type: map",
        ),
        (
            &|| Answer::Json("[1, \"a\"]".into()),
            "the answer is not what it should be: invalid type: integer",
        ),
        (
            &|| Answer::Json("{\"builders\": [{\"builderid\": \"x\"}]}".into()),
            "the answer is not what it should be: ",
        ),
        (
            &|| Answer::Json("[".repeat(100_000)),
            "the answer is not what it should be: ",
        ),
        (
            &|| Answer::Stall(format!("{head}Content-Length: 90\r\n\r\n{{").into()),
            "no answer in time",
        ),
        (&|| Answer::Stall(head.into()), "no answer in time"),
        (
            &|| endless(&format!("{head}X-More: "), "of this "),
            "an endless head",
        ),
        (
            &|| {
                endless(
                    &format!("{head}Transfer-Encoding: chunked\r\n\r\n"),
                    "1;x=y",
                )
            },
            "a broken chunk",
        ),
        (&|| length(1 << 30, "{"), "a body above "),
        (&|| chunked("zz\r\n{}\r\n0\r\n\r\n"), "a broken chunk"),
        (
            &|| chunked("2\r\n{}garbage\r\n0\r\n\r\n"),
            "a chunk is longer than its size",
        ),
        (
            &|| Answer::Raw(b"220 mail.example ESMTP\r\n".to_vec()),
            "this is no HTTP",
        ),
        (
            &|| status("404 Not Found", "<html>"),
            "the master refuses: no reason given; is the url right? (404)",
        ),
        (
            &|| {
                status(
                    "403 Forbidden",
                    "{\"error\": \"you need to have role 'admins'\"}",
                )
            },
            "you need to have role 'admins' (403)",
        ),
        (
            &|| {
                status(
                    "500 Oops",
                    "{\"error\": {\"message\": \"Ty\\u0002pe\\r\\nError\"}}",
                )
            },
            "Ty pe Error (500)",
        ),
    ];
    std::thread::scope(|scope| {
        for (answer, sentence) in cases {
            // The closure of a server lives longer than this scope, so the bytes are made for each request anew.
            let answers: Vec<Answer> = (0..4).map(|_| answer()).collect();
            scope.spawn(move || {
                let (world, answers) = (World::new(1), Mutex::new(answers));
                let fake = FakeHttp::start(move |request| {
                    match request.path.starts_with("/api/v2/builders") {
                        true => answers
                            .lock()
                            .unwrap()
                            .pop()
                            .expect("asked no more than twice"),
                        false => world.answer(request),
                    }
                });
                let since = Instant::now();
                let done = execute(&fake.url(), "timeout = 2", "status");
                assert_eq!(
                    (done.code, done.stdout.as_str()),
                    (69, ""),
                    "{sentence}: {done:?}"
                );
                assert_eq!(done.stderr.trim_end().lines().count(), 1, "{done:?}");
                assert!(done.stderr.contains(sentence), "not {sentence:?}: {done:?}");
                assert!(
                    since.elapsed() < Duration::from_secs(15),
                    "{sentence}: {:?}",
                    since.elapsed()
                );
            });
        }
    });
}

#[test]
fn a_body_that_stalls_is_asked_for_again_on_a_new_connection() {
    let (world, count) = (World::new(3), AtomicUsize::new(0));
    let fake = FakeHttp::start(
        move |request| match request.path.starts_with("/api/v2/builders") {
            true if count.fetch_add(1, Ordering::SeqCst) == 0 => Answer::Stall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"builders\": [".to_vec(),
            ),
            _ => world.answer(request),
        },
    );
    let since = Instant::now();
    let done = execute(&fake.url(), "", "list all builders");
    assert_eq!(
        done.stdout
            .split_whitespace()
            .filter(|word| word.starts_with('b'))
            .count(),
        3,
        "{done:?}"
    );
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
    let asked = fake
        .requests()
        .into_iter()
        .filter(|r| r.path.starts_with("/api/v2/builders"))
        .collect::<Vec<_>>();
    assert!(
        asked.len() == 2 && asked[1].head.contains("Connection: close"),
        "{asked:?}"
    );
}

#[test]
fn a_master_that_answers_rubbish_leaves_the_bot_on_irc() {
    let count = AtomicUsize::new(0);
    let fake = FakeHttp::start(move |_| match count.fetch_add(1, Ordering::SeqCst) % 3 {
        0 => Answer::Json("{\"items\": 5}".into()),
        1 => Answer::Raw(vec![0xff; 5000]),
        _ => Answer::Status("500 Oops", String::new(), "\u{7}".into()),
    });
    let irc = FakeIrc::start();
    let mut bot = Bot::start(BOT, &config(&fake.url(), "poll_interval = 100ms", irc.port));
    let mut peer = lab(&irc);
    bot.expect_log("the master does not answer: ");
    for (command, answer) in [
        ("status", "the master has not answered yet: "),
        ("source", "Buildbot: "),
        ("list changes", ""),
    ] {
        peer.send(&format!(":joe!j@h PRIVMSG bot :{command}"));
        let line = peer.expect("PRIVMSG joe");
        assert!(
            line.starts_with(&format!("PRIVMSG joe :{answer}")),
            "{command}: {line}"
        );
    }
}

/// Requests of the REST API so far, without their queries.
fn paths(fake: &FakeHttp) -> Vec<String> {
    let requests = fake.requests().into_iter();
    let paths = requests.map(|request| request.path.split('?').next().unwrap().to_string());
    paths.filter(|path| path.starts_with("/api/")).collect()
}

fn count(fake: &FakeHttp, path: &str) -> usize {
    paths(fake).iter().filter(|p| *p == path).count()
}

#[test]
fn a_poll_is_at_most_four_requests_however_many_builders_there_are() {
    for (builders, running) in [(1, 0), (300, 0), (1, 1), (300, 90)] {
        let world = World::new(builders);
        (0..running).for_each(|_| drop(world.build(false)));
        let fake = FakeHttp::start(move |request| world.answer(request));
        let irc = FakeIrc::start();
        let more = "poll_interval = 100ms\nevent_stream = no";
        let _bot = Bot::start(BOT, &config(&fake.url(), more, irc.port));
        let poll = "/api/v2/buildrequests"; // once in each
        let paths = wait_for("twelve polls", TIMEOUT, || {
            let paths = paths(&fake);
            (paths.iter().filter(|path| *path == poll).count() >= 12).then_some(paths)
        });
        let polls: Vec<&[String]> = paths.split(|path| path == poll).collect();
        for poll in &polls[2..11] {
            assert!(
                poll.len() < 4,
                "{builders} builders, {running} running: {poll:?} and one more"
            );
            assert_eq!(poll, &polls[2]);
        }
    }
}

#[test]
fn with_a_healthy_stream_the_master_is_asked_six_times_less() {
    let world = World::new(300);
    let fake = FakeHttp::start(move |request| match request.path.as_str() {
        path if path.starts_with("/sse/listen/") => stream(b""),
        path if path.starts_with("/sse/add/") => Answer::Json("ok".into()),
        _ => world.answer(request),
    });
    let irc = FakeIrc::start();
    let mut bot = Bot::start(BOT, &config(&fake.url(), "poll_interval = 400ms", irc.port));
    bot.expect_log("event stream: subscribed");
    let polls = || {
        paths(&fake)
            .iter()
            .filter(|path| *path == "/api/v2/buildrequests")
            .count()
    };
    let start = polls();
    let first = wait_for("a poll", TIMEOUT, || {
        (polls() > start).then(|| (Instant::now(), paths(&fake).len()))
    });
    let later = wait_for("two polls more", TIMEOUT, || {
        (polls() >= start + 3).then(|| (Instant::now(), paths(&fake).len()))
    });
    let (time, requests) = (later.0 - first.0, later.1 - first.1);
    assert!(time > Duration::from_millis(2 * 6 * 400 - 500), "{time:?}");
    assert!(requests <= 2 * 4, "{requests} requests in two polls");
}

#[test]
fn a_stream_that_died_without_a_word_loses_nothing() {
    let world = World::new(1);
    let told = world.clone();
    let fake = FakeHttp::start(move |request| match request.path.as_str() {
        path if path.starts_with("/sse/listen/") => stream(b""),
        path if path.starts_with("/sse/add/") => Answer::Json("ok".into()),
        _ => told.answer(request),
    });
    let irc = FakeIrc::start();
    let mut bot = Bot::start(BOT, &config(&fake.url(), "poll_interval = 200ms", irc.port));
    let mut peer = lab(&irc);
    bot.expect_log("event stream: subscribed");
    // The poll that the subscription causes finds what no stream could tell.
    wait_for("two polls", TIMEOUT, || {
        (count(&fake, "/api/v2/buildrequests") > 1).then_some(())
    });
    world.build(true);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b1 #1 success")
    );
    bot.expect_log("event stream: it missed 1 build; starting it anew");
    bot.expect_log_times("event stream: subscribed", 2);
    world.build(true);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b1 #2 success")
    );
    bot.expect_log_times(">> PRIVMSG #lab", 2);
    assert_eq!(
        bot.log().matches(">> PRIVMSG #lab").count(),
        2,
        "{}",
        bot.log()
    );
}

#[test]
fn broken_events_do_no_harm() {
    let world = World::new(1);
    let mut finished = world.build(true);
    let unseen = (world.clone(), AtomicUsize::new(0));
    finished["buildid"] = json!(2);
    finished["number"] = json!(2);
    let good = json!({"key": ["builds", "2", "finished"], "message": finished}).to_string();
    let mut bytes =
        b"data: {half\n\ndata:\n\n: comment\n\nevent: \xff\xfe\ndata: \xc3\n\nid\nretry: x\n\n\r\n\r\n".to_vec();
    for bad in [
        "[]",
        "{\"key\": [], \"message\": 1}",
        "{\"key\": [\"builds\"], \"message\": {\"buildid\": -1}}",
        "null",
        "1e999",
    ] {
        bytes.extend(format!("event: event\ndata: {bad}\n\n").bytes());
    }
    bytes.extend(format!("data: {}\n\n", "x".repeat(600_000)).bytes());
    bytes.extend(format!("event: event\ndata: {good}\n\nevent: event\ndata: {good}\n\n").bytes());
    let fake = FakeHttp::start(move |request| match request.path.as_str() {
        // Only once the first poll is over: what is there before is not news.
        path if path.starts_with("/sse/listen/") && unseen.1.load(Ordering::SeqCst) == 0 => {
            Answer::Raw(Vec::new())
        }
        path if path.starts_with("/sse/listen/") => stream(&bytes),
        path if path.starts_with("/sse/add/") => Answer::Json("ok".into()),
        path => {
            unseen.1.fetch_add(
                usize::from(path.contains("/buildrequests")),
                Ordering::SeqCst,
            );
            unseen.0.answer(request)
        }
    });
    let irc = FakeIrc::start();
    let mut bot = Bot::start(BOT, &config(&fake.url(), "", irc.port));
    let mut peer = lab(&irc);
    bot.expect_log("event stream: subscribed");
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b1 #2 success")
    );
    peer.send(":joe!j@h PRIVMSG bot :last b1");
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG joe :b1: #2 success")
    );
    assert_eq!(
        bot.log().matches(">> PRIVMSG #lab").count(),
        1,
        "{}",
        bot.log()
    );
}

#[test]
fn a_master_without_an_event_stream_is_polled() {
    let world = World::new(1);
    let told = world.clone();
    let fake = FakeHttp::start(move |request| told.answer(request));
    let irc = FakeIrc::start();
    let mut bot = Bot::start(BOT, &config(&fake.url(), "poll_interval = 200ms", irc.port));
    let mut peer = lab(&irc);
    bot.expect_log("no event stream (404)");
    fake.expect("/api/v2/buildrequests");
    world.build(true);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b1 #1 success")
    );
    assert_eq!(
        fake.requests()
            .iter()
            .filter(|request| request.path.starts_with("/sse/"))
            .count(),
        1
    );
}

#[test]
fn what_happens_while_the_stream_is_down_is_told_once() {
    let master = Master::start("stream", "gated('linux')");
    let _worker = Worker::start(&master, "w1");
    let irc = FakeIrc::start();
    let proxy = Proxy::start(master.port);
    let url = format!("http://127.0.0.1:{}/", proxy.port);
    let mut bot = Bot::start(BOT, &config(&url, "poll_interval = 1s", irc.port));
    let mut peer = lab(&irc);
    bot.expect_log("event stream: subscribed");
    let build = |number| {
        master.force("linux", &[]);
        master.release("linux", SUCCESS);
        master.wait_build("linux", number);
    };
    build(1);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :linux #1 success")
    );
    proxy.refuse(true);
    proxy.cut();
    build(2);
    proxy.refuse(false);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :linux #2 success")
    );
    bot.expect_log_times("event stream: subscribed", 2);
    build(3);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :linux #3 success")
    );
    peer.send(":joe!j@h PRIVMSG bot :last linux");
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG joe :linux: #3 success")
    );
    assert_eq!(
        bot.log().matches(">> PRIVMSG #lab").count(),
        3,
        "{}",
        bot.log()
    );
}

/// A bot that polls such a master five times a second, in #lab.
fn polling(fake: &FakeHttp, irc: &FakeIrc) -> (Bot, FakePeer) {
    let bot = Bot::start(
        BOT,
        &config(
            &fake.url(),
            "poll_interval = 200ms\nevent_stream = no",
            irc.port,
        ),
    );
    let peer = lab(irc);
    fake.expect("/api/v2/buildrequests");
    (bot, peer)
}

#[test]
fn a_database_that_was_created_anew_is_noticed() {
    let world = World::new(2);
    (0..5).for_each(|_| drop(world.build(true)));
    let (fake, irc) = (world.serve(), FakeIrc::start());
    let (mut bot, mut peer) = polling(&fake, &irc);
    world.start_over();
    world.build(false);
    bot.expect_log("the master counts its builds anew");
    world.finish(1);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b1 #1 success")
    );
    world.build(true);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b2 #2 success")
    );
    assert_eq!(
        bot.log().matches("counts its builds anew").count(),
        1,
        "{}",
        bot.log()
    );
}

#[test]
fn a_builder_that_is_removed_still_ends_what_it_has_begun() {
    let world = World::new(2);
    world.remove(1);
    world.build(true);
    let (fake, irc) = (world.serve(), FakeIrc::start());
    let (bot, mut peer) = polling(&fake, &irc);
    world.build(true);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b2 #2 success")
    );
    let counts = || ["/api/v2/builders", "/api/v2/buildrequests"].map(|path| count(&fake, path));
    wait_for("the list", TIMEOUT, || (counts()[0] > 1).then_some(()));
    let polls = counts()[1];
    wait_for("the end of that poll", TIMEOUT, || {
        (counts()[1] > polls).then_some(())
    });
    peer.send(":joe!j@h PRIVMSG bot :list all builders");
    assert_eq!(
        peer.expect("PRIVMSG joe"),
        "PRIVMSG joe :1 builder: b1 [offline]"
    );
    assert_eq!(
        bot.log().matches(">> PRIVMSG #lab").count(),
        1,
        "{}",
        bot.log()
    );
}

/// Their builds are in the master's list, and the newest of all may be one of them.
#[test]
fn builders_that_are_gone_cost_no_polls() {
    let world = World::new(3);
    world.remove(2);
    world.build(true);
    let (fake, irc) = (world.serve(), FakeIrc::start());
    let (_bot, mut peer) = polling(&fake, &irc);
    world.end((0..20).map(|i| (2 + i % 2, 0)), 1_795_361_893);
    assert!(
        peer.expect("PRIVMSG")
            .contains("success b2 #2, b3 #3, b2 #4")
    );
    let polls = count(&fake, "/api/v2/buildrequests");
    wait_for("40 polls", TIMEOUT, || {
        (count(&fake, "/api/v2/buildrequests") > polls + 40).then_some(())
    });
    assert_eq!(count(&fake, "/api/v2/builders"), 2);
}

#[test]
fn a_passing_error_hides_no_change() {
    let world = World::new(2);
    world.build(true);
    let (told, asked) = (world.clone(), AtomicUsize::new(0));
    let fake = FakeHttp::start(move |request| {
        match request.path.split('?').next().unwrap() {
        "/api/v2/builders/2/builds" if asked.fetch_add(1, Ordering::SeqCst) == 0 => {
            Answer::Status("504 Gateway Timeout", String::new(), String::new())
        }
        "/api/v2/builders/2/builds" => Answer::Json(
            json!({"builds": [{
                "buildid": 1, "builderid": 2, "number": 1, "buildrequestid": 1, "started_at": 1_795_361_890,
                "complete": true, "complete_at": 1_795_361_891, "results": 2, "state_string": "failed"
            }]})
            .to_string(),
        ),
        _ => told.answer(request),
    }
    });
    let irc = FakeIrc::start();
    let (_bot, mut peer) = polling(&fake, &irc);
    world.build(true);
    assert!(
        peer.expect("PRIVMSG")
            .starts_with("PRIVMSG #lab :b2 #2 success (fixed)")
    );
}

#[test]
fn a_stream_that_stands_hurries_no_poll_that_fails() {
    let world = World::new(1);
    let fake = FakeHttp::start(move |request| match request.path.as_str() {
        path if path.starts_with("/sse/listen/") => stream(b""),
        path if path.starts_with("/sse/add/") => Answer::Json("ok".into()),
        path if path.contains("/buildrequests") => Answer::Json("[".into()),
        _ => world.answer(request),
    });
    let irc = FakeIrc::start();
    let mut bot = Bot::start(BOT, &config(&fake.url(), "", irc.port));
    bot.expect_log("event stream: subscribed");
    std::thread::sleep(Duration::from_secs(10));
    let polls = paths(&fake)
        .iter()
        .filter(|path| *path == "/api/v2/buildrequests")
        .count();
    assert!((2..14).contains(&polls), "{polls} polls");
}
