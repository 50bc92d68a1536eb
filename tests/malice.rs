//! Floods and bombs from the IRC server and the master: whatever comes, the bot stays small, and answers.

mod common;

use common::{Answer, Bot, FakeHttp, FakeIrc, FakePeer, Request, TIMEOUT, wait_for};
use serde_json::json;
use std::time::{Duration, Instant};

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");
/// The most that the bot may ever have had in memory, in kB.
const LIMIT: u64 = 32 * 1024;
const MEGABYTE: usize = 1 << 20;
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
                      1b\r\nevent: handshake\ndata: 12\n\n\r\n";

/// A bot in #lab, and the server that it is connected to.
fn start(master: &str, more: &str) -> (Bot, FakePeer) {
    let irc = FakeIrc::start();
    let server = format!(
        "host = 127.0.0.1\nport = {}\nnick = bot\nnotify_events = finished",
        irc.port
    );
    let bot = Bot::start(
        BOT,
        &format!("[buildbot]\nurl = {master}\n{more}\n[irc]\n{server}\n[channel #lab]\n"),
    );
    let mut peer = irc.accept();
    peer.register();
    peer.expect("JOIN #lab");
    peer.send(":bot!~bot@127.0.0.1 JOIN #lab");
    (bot, peer)
}

/// The bot still answers, after what it had to say before, and has stayed small.
#[track_caller]
fn small_and_well(what: &str, bot: &Bot, peer: &mut FakePeer) {
    peer.send(":ann!a@h PRIVMSG bot :version");
    let end = Instant::now() + 2 * TIMEOUT;
    while !peer
        .line_within(TIMEOUT)
        .unwrap_or_default()
        .starts_with("PRIVMSG ann :buildbot-irc ")
    {
        assert!(Instant::now() < end, "{what}: no answer");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", bot.pid())).unwrap();
    let most = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let most: u64 = most.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{what}: at most {most} kB");
    assert!(most < LIMIT, "{what}: the bot took {most} kB");
}

/// Waits until the bot has asked for this path and is through with what it got: it asks for other things, or again.
#[track_caller]
fn dealt_with(fake: &FakeHttp, path: &str) {
    wait_for(&format!("what comes after {path}"), 3 * TIMEOUT, || {
        let asked = fake.requests();
        asked
            .iter()
            .position(|request| request.path.starts_with(path))
            .filter(|first| asked.len() > first + 3)
    });
}

/// A master that has so many builders with a build each, in pages as they are asked for.
fn master(request: &Request, builders: usize) -> Answer {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let number = |key: &str, usual: usize| -> usize {
        let value = query
            .split('&')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        value.map_or(usual, |value| value.parse().unwrap())
    };
    let page = |item: &dyn Fn(usize) -> serde_json::Value| -> Vec<serde_json::Value> {
        (1..=builders)
            .skip(number("offset", 0))
            .take(number("limit", usize::MAX))
            .map(item)
            .collect()
    };
    let builder = |id| json!({"builderid": id, "name": format!("builder number {id}"), "tags": [], "masterids": [1]});
    let build = |id| {
        json!({"buildid": id, "builderid": id, "number": 1, "buildrequestid": id, "started_at": 1_795_361_890,
               "complete": true, "complete_at": 1_795_361_893, "results": 0, "state_string": "build successful"})
    };
    Answer::Json(match path {
        "/config" => {
            json!({"versions": [["Buildbot", "4.3.0"]], "buildbotURL": "http://m/"}).to_string()
        }
        "/api/v2/builders" => json!({"builders": page(&builder)}).to_string(),
        "/api/v2/builds" if query.contains("order=-buildid") => {
            json!({"builds": page(&build)}).to_string()
        }
        _ => json!({path.rsplit('/').next().unwrap(): []}).to_string(),
    })
}

#[test]
fn ten_thousand_channel_lines_a_second() {
    let (bot, mut peer) = start("http://127.0.0.1:1/", "");
    let talk =
        ":joe!j@h PRIVMSG #lab :does anybody know why the build of this morning has failed?\r\n";
    let lines = talk.repeat(999) + ":joe!j@h PRIVMSG #lab :bot: source\r\n";
    let start = Instant::now();
    for turn in 0..50 {
        peer.send_bytes(lines.as_bytes());
        // That is the pace of the flood.
        std::thread::sleep(
            (start + turn * Duration::from_millis(100)).saturating_duration_since(Instant::now()),
        );
    }
    peer.barrier();
    small_and_well(
        &format!("50,000 lines in {:?}", start.elapsed()),
        &bot,
        &mut peer,
    );
}

#[test]
fn a_line_of_a_hundred_megabytes() {
    for beginning in ["", "@a=", ":", ":joe!j@h PRIVMSG #lab :bot: status "] {
        let (mut bot, mut peer) = start("http://127.0.0.1:1/", "");
        peer.send_bytes(beginning.as_bytes());
        (0..100).for_each(|_| peer.send_bytes(&[b'x'; MEGABYTE]));
        peer.send("");
        bot.expect_log("IRC: dropped a line that was too long");
        small_and_well(beginning, &bot, &mut peer);
    }
}

#[test]
fn a_body_of_a_gigabyte() {
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n";
    let chunked = |status: &str, start: &str| {
        format!(
            "HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{start}\r\n",
            start.len()
        )
    };
    let chunk = |text: &str| format!("{MEGABYTE:x}\r\n{}\r\n", text.repeat(MEGABYTE / text.len()));
    let cases = [
        (
            "/config",
            format!("{length}{{\"title\": \""),
            "x".repeat(MEGABYTE),
        ),
        ("/config", chunked("200 OK", "{\"title\": \""), chunk("x")),
        (
            "/api/v2/builders",
            format!("{length}{{\"builders\": ["),
            " ".repeat(MEGABYTE),
        ),
        (
            "/api/v2/builders",
            chunked("200 OK", "{\"builders\": ["),
            chunk("{\"id\":1}, {\"id\":2},"),
        ),
        (
            "/api/v2/builds",
            chunked("500 Oops", "{\"error\": ["),
            chunk("[],{},0,"),
        ),
    ];
    std::thread::scope(|scope| {
        for (path, head, again) in cases {
            scope.spawn(move || {
                let what = format!("{path} {head:?}");
                let fake = FakeHttp::start(move |request| match request.path.starts_with(path) {
                    true => Answer::Endless(head.clone().into_bytes(), again.clone().into_bytes()),
                    false => master(request, 3),
                });
                let (mut bot, mut peer) = start(&fake.url(), "poll_interval = 500ms\ntimeout = 20");
                bot.expect_log("the master does not answer: ");
                dealt_with(&fake, path);
                small_and_well(&what, &bot, &mut peer);
            });
        }
    });
}

/// Just below what the bot takes of a body, a little text becomes much memory if all of it is kept.
fn swells(path: &'static str, status: &'static str, start_of_body: &str, again: &str, end: &str) {
    let body = format!(
        "{start_of_body}{}{end}",
        again.repeat(15 * MEGABYTE / again.len())
    );
    let fake = FakeHttp::start(move |request| match request.path.starts_with(path) {
        true => Answer::Status(status, String::new(), body.clone()),
        false => master(request, 3),
    });
    let (bot, mut peer) = start(&fake.url(), "poll_interval = 500ms");
    dealt_with(&fake, path);
    small_and_well(path, &bot, &mut peer);
}

#[test]
fn an_error_that_swells() {
    swells(
        "/api/v2/builders",
        "500 Oops",
        "{\"error\": {\"message\": [",
        "0,",
        "0]}}",
    );
}

#[test]
fn a_version_that_swells() {
    swells(
        "/config",
        "200 OK",
        "{\"versions\": [",
        "[\"\",\"\"],",
        "[\"\",\"\"]]}",
    );
}

#[test]
fn a_page_that_swells() {
    let worker = "{\"workerid\":1,\"name\":\"b\"}";
    let builder = "{\"builderid\":1,\"name\":\"b\",\"tags\":[],\"masterids\":[1]}";
    let build = "{\"buildid\":1,\"builderid\":1,\"number\":1,\"started_at\":1,\"complete\":false}";
    for (kind, item) in [
        ("workers", worker),
        ("builders", builder),
        ("builds", build),
    ] {
        let path = format!("/api/v2/{kind}");
        swells(
            path.leak(),
            "200 OK",
            &format!("{{\"{kind}\": ["),
            &format!("{item},"),
            &format!("{item}]}}"),
        );
    }
}

#[test]
fn ten_thousand_builders() {
    let fake = FakeHttp::start(|request| master(request, 10_000));
    let (bot, mut peer) = start(&fake.url(), "");
    fake.expect("/api/v2/buildrequests");
    peer.send(":joe!j@h PRIVMSG bot :status builder number 9999");
    assert!(
        peer.expect("PRIVMSG joe :")
            .contains("builder number 9999: ")
    );
    for command in ["list all builders", "status all", "last all", "status *9*"] {
        peer.send(&format!(":joe!j@h PRIVMSG bot :{command}"));
        peer.send(&format!(":joe!j@h PRIVMSG #lab :bot: {command}"));
    }
    small_and_well("10,000 builders", &bot, &mut peer);
}

#[test]
fn a_hundred_nested_levels() {
    let deep = format!(
        "{}1{}",
        "[".repeat(50) + &"{\"a\":".repeat(50),
        "}".repeat(50) + &"]".repeat(50)
    );
    let event = format!("data: {{\"key\": [\"builds\", \"1\", \"new\"], \"message\": {deep}}}\n\n");
    let fake = FakeHttp::start(move |request| match request.path.as_str() {
        // Where nobody looks they do no harm; where a number or a reason belongs they are an error.
        path if path.starts_with("/api/v2/builders") => Answer::Json(format!(
            "{{\"builders\": [{{\"builderid\": 1, \"name\": \"b\", \"masterids\": [1], \"x\": {deep}}}], \"meta\": {deep}}}"
        )),
        path if path.starts_with("/api/v2/buildrequests") => {
            Answer::Status("500 Oops", String::new(), format!("{{\"error\": {deep}}}"))
        }
        path if path.starts_with("/api/v2/changes") => {
            Answer::Json(format!("{{\"changes\": [{{\"changeid\": {deep}}}]}}"))
        }
        path if path.starts_with("/sse/listen") => {
            Answer::Stall(format!("{STREAM}{:x}\r\n{event}\r\n", event.len()).into_bytes())
        }
        _ => master(request, 1),
    });
    let (mut bot, mut peer) = start(&fake.url(), "poll_interval = 200ms");
    bot.expect_log("the master does not answer: the master refuses: no reason given");
    for (command, answer) in [
        ("status b", "b: "),
        ("list changes", "the answer is not what it should be"),
    ] {
        peer.send(&format!(":joe!j@h PRIVMSG bot :{command}"));
        while !peer.expect("PRIVMSG joe :").contains(answer) {}
    }
    small_and_well("100 levels", &bot, &mut peer);
}

/// Five seconds of them, as fast as the bot can read: one build again and again, many that end, many that begin with
/// gaps between, and all as one event that does not end.
#[test]
fn five_thousand_events_a_second() {
    for (kind, factor) in [("finished", 0), ("finished", 1), ("new", 2), ("endless", 0)] {
        let event = |n: usize| {
            let (id, done) = (n * factor + 7, kind == "finished");
            let message = json!({"buildid": id, "builderid": n % 3 + 1, "number": id, "buildrequestid": id,
                "started_at": 1_795_361_890, "complete": done, "complete_at": done.then_some(1_795_361_893),
                "results": done.then_some(0), "state_string": "build successful"});
            let data = json!({"key": ["builds", id.to_string(), kind], "message": message});
            let event = format!(
                "event: event\ndata: {data}\n{}",
                if kind == "endless" { "" } else { "\n" }
            );
            format!("{:x}\r\n{event}\r\n", event.len())
        };
        let bytes = STREAM.to_string() + &(1..=25_000).map(event).collect::<String>();
        let fake = FakeHttp::start(
            move |request| match request.path.starts_with("/sse/listen") {
                true => Answer::Raw(bytes.clone().into_bytes()),
                false => master(request, 3),
            },
        );
        let (mut bot, mut peer) = start(&fake.url(), "");
        bot.expect_log("event stream: subscribed");
        peer.send(":joe!j@h PRIVMSG bot :status builder number 1");
        peer.expect("PRIVMSG joe :");
        // When it has read all of it, it asks for more.
        wait_for("the end of the stream", 3 * TIMEOUT, || {
            let asked = fake
                .requests()
                .into_iter()
                .filter(|request| request.path.starts_with("/sse/listen"));
            (asked.count() >= 2).then_some(())
        });
        small_and_well(&format!("{kind} × {factor}"), &bot, &mut peer);
    }
}
