//! The bot and its master: away, slow, half-hearted or broken, and how often it is asked. On IRC the bot
//! answers all the same.

mod common;

use common::{
    ANNOUNCING, Answer, Certificates, FakeHttp, FakeMaster, Finished, Lab, Master, POLLING, Proxy,
    Request, SUCCESS, execute,
};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A reply that waits for no master, on a machine that is busy with other tests.
const PROMPT: Duration = Duration::from_secs(5);

/// The run ended with code 69 and this on stderr.
#[track_caller]
fn expect_unreachable(done: &Finished, error: &str) {
    assert!(done.stderr.contains(error), "not {error:?}: {done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
    assert_eq!(done.code, 69, "{done:?}");
}

#[test]
fn a_master_that_comes_and_goes_never_stops_the_bot() {
    let mut lab = Lab::new()
        .with_master("away", "gated('linux')")
        .with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let ann = lab.person("ann", &[]);
    let proxy = Proxy::start(lab.master().port);
    lab.master_url = proxy.url();
    lab.master_mut().stop();
    let mut bot = lab.start_as(
        "bot",
        "timeout = 6\npoll_interval = 1",
        "notify_events = started finished\n[channel #lab]",
    );
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

    lab.master_mut().start_again();
    bot.expect_log("the master answers again");
    bot.wait_subscribed(1);
    lab.start_worker("w1");
    let master = lab.master();
    master.force("linux", &[]);
    joe.expect_contains(" PRIVMSG #lab :linux #1 started");
    master.wait_started("linux", 1);
    ann.say("bot", "status linux");
    ann.expect_contains(" PRIVMSG ann :linux: building #1");

    master.change("Ann", "r1", "Add the frob");
    ann.say("bot", "list changes");
    ann.expect_contains(" PRIVMSG ann :r1 on main by Ann: Add the frob");

    // It hangs while several people ask.
    let silences = bot.log().matches("Z the master does not answer: ").count();
    proxy.freeze();
    ann.say("bot", "list 1 changes");
    ann.expect_within(" PRIVMSG ann :r1 on main by Ann: Add the frob", PROMPT);
    joe.say("bot", "list changes");
    joe.say("bot", "status");
    ann.say("bot", "source");
    ann.expect_within(" PRIVMSG ann :Buildbot: ", PROMPT);
    ann.say("bot", "list builders");
    ann.expect_within(" PRIVMSG ann :1 builder: linux", PROMPT);
    bot.expect_log_times("Z the master does not answer: ", silences + 1);
    ann.say("bot", "list builders");
    ann.expect_within(" PRIVMSG ann :the master does not answer; as of ", PROMPT);
    joe.expect_contains(
        " PRIVMSG joe :the master does not answer: GET /api/v2/changes: no answer in time",
    );
    joe.expect_contains("linux: building #1");

    // It restarts, which ends the build.
    proxy.thaw();
    proxy.cut();
    lab.master_mut().restart();
    bot.expect_log_times("the master answers again", 2);
    joe.expect_contains(" PRIVMSG #lab :linux #1 cancelled");
    bot.assert_logged(">> PRIVMSG #lab :linux #1 cancelled", 1);
}

#[test]
fn https_with_an_authority_of_its_own() {
    let master = Master::start_tls("tls", "gated('linux')");
    let ca = format!("tls_ca_file = {}", Certificates::get().path("ca.pem"));
    let done = execute(&master.url(), &ca, "list all builders");
    assert_eq!(done.stdout, "linux [offline]\n", "{done:?}");
    assert_eq!(done.code, 0, "{done:?}");
    let refused = "the certificate is refused: unable to get local issuer certificate";
    expect_unreachable(&execute(&master.url(), "", "status"), refused);
    for (certificate, error) in [
        ("wrong", "IP address mismatch"),
        ("expired", "certificate has expired"),
    ] {
        let fake = FakeHttp::start_tls(Some(certificate), |_| Answer::Json("{}".into()));
        expect_unreachable(&execute(&fake.url(), &ca, "status"), error);
        assert_eq!(fake.requests().len(), 0);
    }
    let plain = master.url().replace("https", "http");
    let done = execute(&plain, "timeout = 2", "status");
    expect_unreachable(&done, "GET /config: ");
}

#[test]
fn a_base_path_is_kept() {
    let master = FakeMaster::new(1);
    let server = FakeHttp::start(move |request| {
        let Some(path) = request.path.strip_prefix("/ci/bb/") else {
            return Answer::status("404 Not Found", "");
        };
        master.answer(&Request {
            path: format!("/{path}"),
            ..request.clone()
        })
    });
    let root = server.url();
    for path in ["ci/bb", "ci/bb/"] {
        let done = execute(&format!("{root}{path}"), "", "version");
        let version = "; Buildbot 4.3.0 at http://m/\n";
        assert!(done.stdout.ends_with(version), "{done:?}");
        assert_eq!(done.code, 0, "{done:?}");
    }
    let mut lab = Lab::new().with_fake_master(server).with_fake_irc();
    lab.master_url = format!("{root}ci/bb");
    let _bot = lab.start(ANNOUNCING);
    lab.fake_master().expect("/ci/bb/sse/listen/");
    for request in lab.fake_master().requests() {
        assert!(request.path.starts_with("/ci/bb/"), "{request:?}");
    }
}

/// Broken answers, and what the bot says about each.
fn broken_answers() -> Vec<(Answer, &'static str)> {
    let head = "HTTP/1.1 200 OK\r\n";
    let length = |n: usize, body: &str| {
        Answer::Raw(format!("{head}Content-Length: {n}\r\n\r\n{body}").into_bytes())
    };
    let chunked = |body: &str| {
        Answer::Raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n{body}").into_bytes())
    };
    let endless =
        |start: &str, again: &str| Answer::Endless(start.into(), again.repeat(1000).into());
    vec![
        (length(90, "{\"builders\": ["), "the connection ended early"),
        (
            Answer::Json("{\"builders\": [".into()),
            "the answer is not what it should be: half",
        ),
        (
            Answer::Json("{\"builders\": {}}".into()),
            "the answer is not what it should be: invalid type: map",
        ),
        (
            Answer::Json("[1, \"a\"]".into()),
            "the answer is not what it should be: invalid type: integer",
        ),
        (
            Answer::Json("[".repeat(100_000)),
            "the answer is not what it should be: ",
        ),
        (
            Answer::Stall(format!("{head}Content-Length: 90\r\n\r\n{{").into()),
            "no answer in time",
        ),
        (Answer::Stall(head.into()), "no answer in time"),
        (
            endless(&format!("{head}X-More: "), "of this "),
            "an endless head",
        ),
        (
            endless(
                &format!("{head}Transfer-Encoding: chunked\r\n\r\n"),
                "1;x=y",
            ),
            "a broken chunk",
        ),
        (length(1 << 30, "{"), "a body above "),
        (chunked("zz\r\n{}\r\n0\r\n\r\n"), "a broken chunk"),
        (
            chunked("2\r\n{}garbage\r\n0\r\n\r\n"),
            "a chunk is longer than its size",
        ),
        (
            Answer::Raw(b"220 mail.example ESMTP\r\n".to_vec()),
            "this is no HTTP",
        ),
        (
            Answer::status("404 Not Found", "<html>"),
            "the master refuses: no reason given; is the url right? (404)",
        ),
        (
            Answer::status(
                "403 Forbidden",
                "{\"error\": \"you need to have role 'admins'\"}",
            ),
            "you need to have role 'admins' (403)",
        ),
        (
            Answer::status(
                "500 Oops",
                "{\"error\": {\"message\": \"Ty\\u0002pe\\r\\nError\"}}",
            ),
            "Ty pe Error (500)",
        ),
    ]
}

#[test]
fn broken_answers_are_told_in_a_sentence() {
    std::thread::scope(|scope| {
        for (answer, sentence) in broken_answers() {
            scope.spawn(move || expect_error(answer, sentence));
        }
    });
}

/// `status` against a master that answers like this for its builders ends with one line, which holds the sentence.
#[track_caller]
fn expect_error(answer: Answer, sentence: &str) {
    let master = FakeMaster::new(1);
    let server = FakeHttp::start(move |request| {
        if request.path.starts_with("/api/v2/builders") {
            answer.clone()
        } else {
            master.answer(request)
        }
    });
    let since = Instant::now();
    let done = execute(&server.url(), "timeout = 2", "status");
    expect_unreachable(&done, sentence);
    assert_eq!(done.stderr.trim_end().lines().count(), 1, "{done:?}");
    let took = since.elapsed();
    assert!(took < Duration::from_secs(15), "{sentence}: {took:?}");
    // A page that is too large is halved, and while somebody waits a broken answer is asked for again.
    let tries = server.count("/api/v2/builders");
    assert!(tries <= 16, "{sentence}: asked {tries} times");
}

#[test]
fn a_body_that_stalls_is_asked_for_again_on_a_new_connection() {
    let master = FakeMaster::new(3);
    let count = AtomicUsize::new(0);
    let server = FakeHttp::start(move |request| {
        let is_list = request.path.starts_with("/api/v2/builders");
        if is_list && count.fetch_add(1, Ordering::SeqCst) == 0 {
            let start = "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"builders\": [";
            Answer::Stall(start.into())
        } else {
            master.answer(request)
        }
    });
    let since = Instant::now();
    let done = execute(&server.url(), "", "list all builders");
    let words = done.stdout.split_whitespace();
    let builders = words.filter(|word| word.starts_with('b')).count();
    assert_eq!(builders, 3, "{done:?}");
    let took = since.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let mut lists = server.requests();
    lists.retain(|request| request.path.starts_with("/api/v2/builders"));
    assert_eq!(lists.len(), 2, "{lists:?}");
    assert!(lists[1].head.contains("Connection: close"), "{lists:?}");
}

#[test]
fn a_master_that_answers_rubbish_leaves_the_bot_on_irc() {
    let count = AtomicUsize::new(0);
    let server = FakeHttp::start(move |_| match count.fetch_add(1, Ordering::SeqCst) % 3 {
        0 => Answer::Json("{\"items\": 5}".into()),
        1 => Answer::Raw(vec![0xff; 5000]),
        _ => Answer::status("500 Oops", "\u{7}"),
    });
    let lab = Lab::new().with_fake_master(server).with_fake_irc();
    let (mut bot, mut peer) = lab.start_announcing("poll_interval = 100ms");
    bot.expect_log("the master does not answer: ");
    for (command, answer) in [
        ("status", "the master has not answered yet: "),
        ("source", "Buildbot: "),
        ("list changes", ""),
    ] {
        peer.say("bot", command);
        peer.expect_message("joe", answer);
    }
}

#[test]
fn a_poll_is_at_most_four_requests_however_many_builders_there_are() {
    for (builders, running) in [(1, 0), (300, 0), (1, 1), (300, 90)] {
        let master = FakeMaster::new(builders);
        for _ in 0..running {
            master.build(false);
        }
        let lab = Lab::new().with_fake_master(master.serve()).with_fake_irc();
        let buildbot = "poll_interval = 100ms\nevent_stream = no";
        let _bot = lab.start_as("bot", buildbot, ANNOUNCING);
        lab.fake_master().wait_polls(12);
        let resources = lab.fake_master().resources();
        // Each poll ends with this request.
        let polls = resources.split(|resource| resource == "/api/v2/buildrequests");
        let polls: Vec<&[String]> = polls.collect();
        for poll in &polls[2..11] {
            let case = format!("{builders} builders, {running} running");
            assert!(poll.len() < 4, "{case}: {poll:?} and one more");
            assert_eq!(poll, &polls[2], "{case}");
        }
    }
}

#[test]
fn with_a_healthy_stream_the_master_is_asked_six_times_less() {
    let master = FakeMaster::new(300);
    let lab = Lab::new()
        .with_fake_master(master.serve_with_silent_stream())
        .with_fake_irc();
    let mut bot = lab.start_as("bot", "poll_interval = 400ms", ANNOUNCING);
    bot.wait_subscribed(1);
    let server = lab.fake_master();
    let before = server.polls();
    // A round that began before the subscription is followed by another at once.
    server.wait_polls(before + 2);
    let start = Instant::now();
    let requests = server.resources().len();
    server.wait_polls(before + 4);
    let elapsed = start.elapsed();
    let requests = server.resources().len() - requests;
    let expected = Duration::from_millis(2 * 6 * 400 - 500);
    assert!(elapsed > expected, "two polls in {elapsed:?}");
    assert!(requests <= 2 * 4, "{requests} requests in two polls");
}

#[test]
fn a_stream_that_died_without_a_word_loses_nothing() {
    let master = FakeMaster::new(1);
    let lab = Lab::new()
        .with_fake_master(master.serve_with_silent_stream())
        .with_fake_irc();
    let (mut bot, mut peer) = lab.start_announcing("poll_interval = 200ms");
    bot.wait_subscribed(1);
    // The first poll after the subscription finds what the stream could not know.
    lab.fake_master().wait_polls(2);
    master.build(true);
    peer.expect_message("#lab", "b1 #1 success");
    bot.expect_log("event stream: it did not tell of a build; polling more often");
    bot.wait_subscribed(2);
    master.build(true);
    peer.expect_message("#lab", "b1 #2 success");
    bot.assert_logged(">> PRIVMSG #lab", 2);
}

/// The bytes of an event stream: much that is wrong, then the same good event twice.
fn broken_events(good: &str) -> Vec<u8> {
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
    bytes.extend(format!("event: event\ndata: {good}\n\n").bytes());
    bytes.extend(format!("event: event\ndata: {good}\n\n").bytes());
    bytes
}

#[test]
fn broken_events_do_no_harm() {
    let master = FakeMaster::new(1);
    let mut finished = master.build(true);
    finished["buildid"] = json!(2);
    finished["number"] = json!(2);
    let good = json!({"key": ["builds", "2", "finished"], "message": finished});
    let bytes = broken_events(&good.to_string());
    let polls = AtomicUsize::new(0);
    let server = FakeHttp::start(move |request| {
        if request.path.contains("/buildrequests") {
            polls.fetch_add(1, Ordering::SeqCst);
        }
        // Not before the first poll is over: what it finds is old.
        let is_stream = request.path.starts_with("/sse/listen/");
        if is_stream && polls.load(Ordering::SeqCst) == 0 {
            return Answer::Raw(Vec::new());
        }
        master.answer_with_stream(request, &bytes)
    });
    let lab = Lab::new().with_fake_master(server).with_fake_irc();
    let (mut bot, mut peer) = lab.start_announcing("");
    bot.wait_subscribed(1);
    peer.expect_message("#lab", "b1 #2 success");
    peer.say("bot", "last b1");
    peer.expect_message("joe", "b1: #2 success");
    bot.assert_logged(">> PRIVMSG #lab", 1);
}

#[test]
fn a_master_without_an_event_stream_is_polled() {
    let master = FakeMaster::new(1);
    let lab = Lab::new().with_fake_master(master.serve()).with_fake_irc();
    let (mut bot, mut peer) = lab.start_announcing("poll_interval = 200ms");
    bot.expect_log("no event stream (404)");
    lab.fake_master().wait_polls(1);
    master.build(true);
    peer.expect_message("#lab", "b1 #1 success");
    let mut streams = lab.fake_master().requests();
    streams.retain(|request| request.path.starts_with("/sse/"));
    assert_eq!(streams.len(), 1, "{streams:?}");
}

#[test]
fn what_happens_while_the_stream_is_down_is_told_once() {
    let mut lab = Lab::new()
        .with_master("stream", "gated('linux')")
        .with_worker("w1")
        .with_fake_irc();
    let proxy = Proxy::start(lab.master().port);
    lab.master_url = proxy.url();
    let (mut bot, mut peer) = lab.start_announcing("poll_interval = 1s");
    bot.wait_subscribed(1);
    lab.build("linux", 1, SUCCESS);
    peer.expect_message("#lab", "linux #1 success");
    proxy.refuse(true);
    proxy.cut();
    lab.build("linux", 2, SUCCESS);
    proxy.refuse(false);
    peer.expect_message("#lab", "linux #2 success");
    bot.wait_subscribed(2);
    lab.build("linux", 3, SUCCESS);
    peer.expect_message("#lab", "linux #3 success");
    peer.say("bot", "last linux");
    peer.expect_message("joe", "linux: #3 success");
    bot.assert_logged(">> PRIVMSG #lab", 3);
}

#[test]
fn a_database_that_was_created_anew_is_noticed() {
    let master = FakeMaster::new(2);
    for _ in 0..5 {
        master.build(true);
    }
    let lab = Lab::new().with_fake_master(master.serve()).with_fake_irc();
    let (mut bot, mut peer) = lab.start_announcing(POLLING);
    lab.fake_master().wait_polls(1);
    master.start_over();
    master.build(false);
    bot.expect_log("build ids went backwards; starting over");
    master.finish(1);
    peer.expect_message("#lab", "b1 #1 success");
    master.build(true);
    peer.expect_message("#lab", "b2 #2 success");
    bot.assert_logged("build ids went backwards", 1);
}

#[test]
fn a_builder_that_is_removed_still_ends_what_it_has_begun() {
    let master = FakeMaster::new(2);
    master.remove(1);
    master.build(true);
    let lab = Lab::new().with_fake_master(master.serve()).with_fake_irc();
    let (bot, mut peer) = lab.start_announcing(POLLING);
    let server = lab.fake_master();
    server.wait_polls(1);
    master.build(true);
    peer.expect_message("#lab", "b2 #2 success");
    server.wait_polls(server.polls() + 1);
    peer.say("bot", "list all builders");
    assert_eq!(
        peer.expect("PRIVMSG joe"),
        "PRIVMSG joe :1 builder: b1 [offline]"
    );
    bot.assert_logged(">> PRIVMSG #lab", 1);
}

/// The master still lists their builds, and the newest of all may be one of them.
#[test]
fn builders_that_are_gone_cost_no_polls() {
    let master = FakeMaster::new(3);
    master.remove(2);
    master.build(true);
    let lab = Lab::new().with_fake_master(master.serve()).with_fake_irc();
    let (_bot, mut peer) = lab.start_announcing(POLLING);
    let server = lab.fake_master();
    server.wait_polls(1);
    master.end((0..20).map(|i| (2 + i % 2, SUCCESS)), 1_795_361_893);
    peer.expect("PRIVMSG");
    server.wait_polls(server.polls() + 41);
    let lists = server.count("/api/v2/builders");
    assert!(lists <= 2, "{lists} lists of builders");
}

#[test]
fn a_passing_error_hides_no_change() {
    let master = FakeMaster::new(2);
    master.build(true);
    let told = master.clone();
    let count = AtomicUsize::new(0);
    let failed = json!({
        "buildid": 1, "builderid": 2, "number": 1, "buildrequestid": 1, "started_at": 1_795_361_890,
        "complete": true, "complete_at": 1_795_361_891, "results": 2, "state_string": "failed"
    });
    let server = FakeHttp::start(move |request| {
        if request.resource() != "/api/v2/builders/2/builds" {
            return told.answer(request);
        }
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            return Answer::status("504 Gateway Timeout", "");
        }
        Answer::json(json!({"builds": [failed]}))
    });
    let lab = Lab::new().with_fake_master(server).with_fake_irc();
    let (_bot, mut peer) = lab.start_announcing(POLLING);
    lab.fake_master().wait_polls(1);
    master.build(true);
    peer.expect_message("#lab", "b2 #2 success (fixed)");
}

#[test]
fn a_subscribed_stream_hurries_no_poll_that_fails() {
    let master = FakeMaster::new(1);
    let server = FakeHttp::start(move |request| {
        if request.path.contains("/buildrequests") {
            Answer::Json("[".into())
        } else {
            master.answer_with_stream(request, b"")
        }
    });
    let lab = Lab::new().with_fake_master(server).with_fake_irc();
    let mut bot = lab.start_as("bot", "", ANNOUNCING);
    bot.wait_subscribed(1);
    // The time in which polls are counted.
    std::thread::sleep(Duration::from_secs(10));
    let polls = lab.fake_master().polls();
    assert!((2..14).contains(&polls), "{polls} polls");
}
