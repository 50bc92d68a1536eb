//! Floods and bombs from the IRC server and the master: whatever comes, the bot stays small, and answers.

mod common;

use common::{Answer, Bot, FakeHttp, FakePeer, Lab, Request, TIMEOUT, wait_for};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The most memory that the bot may ever have had, in kB.
const LIMIT: u64 = 32 * 1024;
const MEGABYTE: usize = 1 << 20;

/// A bot in #lab, on the lab's fake IRC server.
struct Victim {
    lab: Lab,
    bot: Bot,
    peer: FakePeer,
}

impl Victim {
    #[track_caller]
    fn start(lab: Lab, buildbot: &str) -> Victim {
        let lab = lab.with_fake_irc();
        let (bot, peer) = lab.start_announcing(buildbot);
        Victim { lab, bot, peer }
    }

    /// The bot still answers, after what it had to say before, and has stayed small.
    #[track_caller]
    fn expect_small_and_alive(&mut self, case: &str) {
        self.peer.send(":ann!a@h PRIVMSG bot :version");
        self.expect_answer("PRIVMSG ann :buildbot-irc ");
        assert_eq!(self.bot.try_exit(), None, "{case}");
        let peak = self.bot.peak_memory();
        println!("{case}: at most {peak} kB");
        assert!(peak < LIMIT, "{case}: the bot took {peak} kB");
    }

    /// The next line that begins like this. Five full lines may go before it, which take the bot six seconds each on a
    /// server that it does not know, and some of those before an answer to somebody else.
    #[track_caller]
    fn expect_answer(&mut self, start: &str) -> String {
        let end = Instant::now() + 5 * TIMEOUT;
        while Instant::now() < end {
            let line = self.peer.line_within(TIMEOUT).unwrap_or_default();
            if line.starts_with(start) {
                return line;
            }
        }
        panic!("no line begins with {start:?}");
    }

    /// Waits until the bot has asked for this path and has dealt with the answer: it makes other requests, or again.
    #[track_caller]
    fn wait_requests_after(&self, path: &str) {
        wait_for(&format!("requests after {path}"), 3 * TIMEOUT, || {
            let requests = self.lab.fake_master().requests();
            let mut paths = requests.iter().map(|request| &request.path);
            let first = paths.position(|other| other.starts_with(path))?;
            (requests.len() > first + 3).then_some(())
        });
    }
}

/// A master that has this many builders with a build each, in pages as they are asked for.
fn master(request: &Request, builders: usize) -> Answer {
    match request.resource() {
        "/config" => {
            Answer::json(json!({"versions": [["Buildbot", "4.3.0"]], "buildbotURL": "http://m/"}))
        }
        "/api/v2/builders" => request.page("builders", (1..=builders).map(builder)),
        "/api/v2/builds" if request.path.contains("order=-buildid") => {
            request.page("builds", (1..=builders).rev().map(build))
        }
        "/api/v2/builds" if request.path.contains("buildid__ge=") => {
            let first = request.number("buildid__ge").unwrap_or(1);
            request.page("builds", (first..=builders).map(build))
        }
        path => request.page(path.rsplit('/').next().unwrap(), []),
    }
}

fn builder(id: usize) -> Value {
    json!({"builderid": id, "name": format!("builder number {id}"), "tags": [], "masterids": [1]})
}

fn build(id: usize) -> Value {
    json!({"buildid": id, "builderid": id, "number": 1, "buildrequestid": id, "started_at": 1_795_361_890,
           "complete": true, "complete_at": 1_795_361_893, "results": 0, "state_string": "build successful"})
}

/// A master with three builders that answers this for one path.
fn master_with(path: &'static str, answer: Answer) -> FakeHttp {
    FakeHttp::start(move |request| {
        if request.path.starts_with(path) {
            answer.clone()
        } else {
            master(request, 3)
        }
    })
}

#[test]
fn ten_thousand_channel_lines_a_second() {
    let mut victim = Victim::start(Lab::new(), "");
    let line =
        ":joe!j@h PRIVMSG #lab :does anybody know why the build of this morning has failed?\r\n";
    let lines = line.repeat(999) + ":joe!j@h PRIVMSG #lab :bot: source\r\n";
    let start = Instant::now();
    for turn in 0..50 {
        victim.peer.send_bytes(lines.as_bytes());
        // The pace of the flood.
        let next = start + turn * Duration::from_millis(100);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    victim.peer.barrier();
    let case = format!("50,000 lines in {:?}", start.elapsed());
    victim.expect_small_and_alive(&case);
}

#[test]
fn a_line_of_a_hundred_megabytes() {
    for beginning in ["", "@a=", ":", ":joe!j@h PRIVMSG #lab :bot: status "] {
        let mut victim = Victim::start(Lab::new(), "");
        victim.peer.send_bytes(beginning.as_bytes());
        for _ in 0..100 {
            victim.peer.send_bytes(&[b'x'; MEGABYTE]);
        }
        victim.peer.send("");
        let dropped = "IRC: dropped a line that was too long";
        victim.bot.expect_log(dropped);
        victim.expect_small_and_alive(beginning);
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
                let case = format!("{path} {head:?}");
                let answer = Answer::Endless(head.into_bytes(), again.into_bytes());
                let lab = Lab::new().with_fake_master(master_with(path, answer));
                let mut victim = Victim::start(lab, "poll_interval = 500ms\ntimeout = 20");
                // The bot can do without the master's version.
                let sentence = if path == "/config" {
                    "GET /config: a body above 256 KiB; going on without"
                } else {
                    "the master does not answer: "
                };
                victim.bot.expect_log(sentence);
                victim.wait_requests_after(path);
                victim.expect_small_and_alive(&case);
            });
        }
    });
}

/// A body just below the limit of the bot, in which a little text becomes much memory if all of it is kept.
#[track_caller]
fn check_swelling(path: &'static str, status: &'static str, body: [&str; 3]) {
    let [start, item, end] = body;
    let items = item.repeat(15 * MEGABYTE / item.len());
    let answer = Answer::status(status, &format!("{start}{items}{end}"));
    let lab = Lab::new().with_fake_master(master_with(path, answer));
    let mut victim = Victim::start(lab, "poll_interval = 500ms");
    victim.wait_requests_after(path);
    victim.expect_small_and_alive(path);
}

#[test]
fn an_error_that_swells() {
    let body = ["{\"error\": {\"message\": [", "0,", "0]}}"];
    check_swelling("/api/v2/builders", "500 Oops", body);
}

#[test]
fn a_version_that_swells() {
    let body = ["{\"versions\": [", "[\"\",\"\"],", "[\"\",\"\"]]}"];
    check_swelling("/config", "200 OK", body);
}

#[test]
fn a_page_that_swells() {
    let worker = "{\"workerid\":1,\"name\":\"b\"}";
    let builder = "{\"builderid\":1,\"name\":\"b\",\"tags\":[],\"masterids\":[1]}";
    let build = "{\"buildid\":1,\"builderid\":1,\"number\":1,\"started_at\":1,\"complete\":false}";
    for (path, kind, item) in [
        ("/api/v2/workers", "workers", worker),
        ("/api/v2/builders", "builders", builder),
        ("/api/v2/builds", "builds", build),
    ] {
        let start = format!("{{\"{kind}\": [");
        let again = format!("{item},");
        let end = format!("{item}]}}");
        check_swelling(path, "200 OK", [&start, &again, &end]);
    }
}

#[test]
fn ten_thousand_builders() {
    let server = FakeHttp::start(|request| master(request, 10_000));
    let lab = Lab::new().with_fake_master(server);
    let mut victim = Victim::start(lab, "");
    victim.lab.fake_master().wait_polls(1);
    let peer = &mut victim.peer;
    peer.say("bot", "status builder number 9999");
    peer.expect("PRIVMSG joe :builder number 9999: ");
    for command in ["list all builders", "status all", "last all", "status *9*"] {
        peer.say("bot", command);
        peer.say("#lab", &format!("bot: {command}"));
    }
    victim.expect_small_and_alive("10,000 builders");
}

#[test]
fn a_hundred_nested_levels() {
    let opening = "[".repeat(50) + &"{\"a\":".repeat(50);
    let closing = "}".repeat(50) + &"]".repeat(50);
    let deep = format!("{opening}1{closing}");
    let event = format!("data: {{\"key\": [\"builds\", \"1\", \"new\"], \"message\": {deep}}}\n\n");
    let server = FakeHttp::start(move |request| {
        let path = request.path.as_str();
        // Where the bot does not look they do no harm; in place of a number they cost their item, and a reason is none.
        if path.starts_with("/api/v2/builders") {
            Answer::Json(format!(
                "{{\"builders\": [{{\"builderid\": 1, \"name\": \"b\", \"masterids\": [1], \"x\": {deep}}}], \"meta\": {deep}}}"
            ))
        } else if path.starts_with("/api/v2/buildrequests") {
            Answer::status("500 Oops", &format!("{{\"error\": {deep}}}"))
        } else if path.starts_with("/api/v2/changes") {
            Answer::Json(format!("{{\"changes\": [{{\"changeid\": {deep}}}]}}"))
        } else if path.starts_with("/sse/listen") {
            Answer::stream(event.as_bytes())
        } else {
            master(request, 1)
        }
    });
    let lab = Lab::new().with_fake_master(server);
    let mut victim = Victim::start(lab, "poll_interval = 200ms");
    let error = "the master does not answer: the master refuses: no reason given";
    victim.bot.expect_log(error);
    victim.bot.expect_log("going on without");
    for (command, answer) in [("status b", "b: "), ("list changes", "no changes yet")] {
        victim.peer.say("bot", command);
        while !victim.peer.expect("PRIVMSG joe :").contains(answer) {}
    }
    victim.expect_small_and_alive("100 levels");
}

/// One chunk of the event stream: the build with this id is `new` or `finished`; `end` ends the event.
fn build_event(id: usize, builder: usize, kind: &str, end: &str) -> String {
    let mut build = build(id);
    build["builderid"] = json!(builder);
    build["number"] = json!(id);
    if kind != "finished" {
        build["complete"] = json!(false);
        build["complete_at"] = Value::Null;
        build["results"] = Value::Null;
    }
    let data = json!({"key": ["builds", id.to_string(), kind], "message": build});
    let event = format!("event: event\ndata: {data}\n{end}");
    format!("{:x}\r\n{event}\r\n", event.len())
}

/// 25,000 events as fast as the bot can read: one build again and again, many that end, many that start with gaps
/// between their ids, and all as one event that does not end.
#[test]
fn five_thousand_events_a_second() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
                1b\r\nevent: handshake\ndata: 12\n\n\r\n";
    for (kind, step, end) in [
        ("finished", 0, "\n"),
        ("finished", 1, "\n"),
        ("new", 2, "\n"),
        ("endless", 0, ""),
    ] {
        let mut bytes = head.to_string();
        for n in 1..=25_000 {
            bytes += &build_event(n * step + 7, n % 3 + 1, kind, end);
        }
        let stream = Answer::Raw(bytes.into_bytes());
        let lab = Lab::new().with_fake_master(master_with("/sse/listen", stream));
        let mut victim = Victim::start(lab, "");
        victim.bot.wait_subscribed(1);
        victim.peer.say("bot", "status builder number 1");
        victim.expect_answer("PRIVMSG joe :");
        // When it has read all of it, it connects again.
        wait_for("the end of the stream", 3 * TIMEOUT, || {
            let mut requests = victim.lab.fake_master().requests();
            requests.retain(|request| request.path.starts_with("/sse/listen"));
            (requests.len() >= 2).then_some(())
        });
        victim.expect_small_and_alive(&format!("{kind} × {step}"));
    }
}
