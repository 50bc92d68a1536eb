//! What real networks, proxies and masters do that the lab's own servers do not: each is played by a fake here. Each test
//! is one kind of fault that a user has met.

mod common;

use common::{
    ANNOUNCING, Answer, FAILURE, FakeHttp, FakeMaster, Finished, Lab, POLLING, Request, SUCCESS,
    execute,
};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

fn now() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// A master of two builders that answers some requests otherwise.
fn altered(answer: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> FakeHttp {
    let master = FakeMaster::new(2);
    FakeHttp::start(move |request| answer(request).unwrap_or_else(|| master.answer(request)))
}

#[track_caller]
fn expect_error(done: &Finished, code: i32, error: &str) {
    assert_eq!(done.stdout, "", "{done:?}");
    assert_eq!(done.code, code, "{done:?}");
    assert!(done.stderr.contains(error), "{done:?}");
}

// The network's side

/// A bot that answers whatever it is told: the two must not talk for ever.
#[test]
fn another_bot_is_not_answered_for_ever() {
    let lab = Lab::new()
        .with_fake_master(FakeMaster::new(1).serve())
        .with_fake_irc();
    let _bot = lab.start_as("bot", POLLING, "pacing = no\n[channel #lab]");
    let mut peer = lab.accept();
    let mut answers = 0;
    for n in 0..100 {
        peer.say("bot", &format!("I do not understand {n}"));
        answers += peer.barrier().len();
    }
    assert!((1..=10).contains(&answers), "{answers} answers");
    peer.expect_alive();
}

/// Sixty people who ask for our version do not keep a channel's question waiting.
#[test]
fn a_crowd_keeps_no_channel_waiting() {
    let lab = Lab::new()
        .with_fake_master(FakeMaster::new(1).serve())
        .with_fake_irc();
    let _bot = lab.start_as("bot", POLLING, "[channel #lab]");
    let mut peer = lab.accept();
    for n in 0..60 {
        peer.send(&format!(":n{n}!u@h PRIVMSG bot :\u{1}VERSION\u{1}"));
    }
    peer.expect_alive();
}

#[test]
fn lines_without_what_they_need_do_nothing() {
    let lab = Lab::new()
        .with_fake_master(FakeMaster::new(1).serve())
        .with_fake_irc();
    let _bot = lab.start_as("bot", POLLING, "[channel #lab]");
    let mut peer = lab.accept();
    for line in [
        ":bot NICK :",
        ":bot NICK",
        "KICK #lab",
        ":op KICK #lab :",
        ":bot!~bot@h JOIN",
        ":bot!~bot@h JOIN :",
        "MODE",
        "PRIVMSG",
        "PING",
        ":fake.test 353 bot = ",
        ":fake.test 001",
        ":",
        "@ :x",
    ] {
        peer.send(line);
    }
    peer.barrier();
    peer.expect_alive();
}

// The master's side

/// Who broke it is nice to know, and keeps nobody's news back.
#[test]
fn changes_that_never_come_keep_no_news_back() {
    let master = FakeMaster::new(2);
    let served = master.clone();
    let server = FakeHttp::start(move |request| {
        if request.path.contains("/changes?") && request.path.contains("/builds/") {
            return Answer::Stall(Vec::new());
        }
        served.answer(request)
    });
    let lab = Lab::new().with_fake_master(server).with_fake_irc();
    let (mut bot, mut peer) = lab.start_announcing(POLLING);
    bot.wait_ready();
    // The master would keep the first request for thirty seconds, and nobody waits here for so long.
    for number in [1, 3, 5] {
        master.end([(1, FAILURE), (2, SUCCESS)], now());
        peer.expect_message("#lab", &format!("b1 #{number} failure"));
        peer.expect_message("#lab", &format!("b2 #{} success", number + 1));
    }
}

/// One text of two mebibytes, and workers that nobody may see.
#[test]
fn one_large_item_and_a_refused_list_cost_themselves() {
    let master = FakeMaster::new(2);
    let served = master.clone();
    let server = FakeHttp::start(move |request| {
        if request.resource() == "/api/v2/workers" {
            return Answer::status("403 Forbidden", "{\"error\": \"no\"}");
        }
        match served.answer(request) {
            Answer::Json(body) if body.contains("\"state_string\"") => {
                let large = format!("\"state_string\":\"{}", "x".repeat(2 << 20));
                Answer::Json(body.replace("\"state_string\":\"", &large))
            }
            answer => answer,
        }
    });
    let lab = Lab::new().with_fake_master(server).with_fake_irc();
    let (mut bot, mut peer) = lab.start_announcing(POLLING);
    bot.expect_log("going on without");
    peer.say("#lab", "bot: status b1");
    while !peer.expect("PRIVMSG").contains("b1: idle") {}
    peer.expect_alive();
}

/// An HTTP/1.0 proxy says no length: the body ends with the connection.
#[test]
fn a_body_may_end_with_its_connection() {
    let master = FakeMaster::new(2);
    let server = FakeHttp::start(move |request| match master.answer(request) {
        Answer::Json(body) => {
            let head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n";
            Answer::Raw(format!("{head}{body}").into_bytes())
        }
        answer => answer,
    });
    let done = execute(&server.url(), "", "list all builders");
    assert_eq!(done.stdout, "b1 [offline]\nb2 [offline]\n", "{done:?}");
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn what_a_proxy_answers_is_told_as_such() {
    let bad_gateway = altered(|request| {
        let is_api = request.path.starts_with("/api/");
        is_api.then(|| Answer::status("502 Bad Gateway", "<html>"))
    });
    let done = execute(&bad_gateway.url(), "", "list builders");
    expect_error(&done, 69, "a proxy answers for the master (502)");

    let portal = FakeHttp::start(|_| {
        let head = "Content-Type: text/html\r\n".to_string();
        Answer::Status("200 OK", head, "<html>welcome</html>".to_string())
    });
    let done = execute(&portal.url(), "", "list builders");
    expect_error(&done, 69, "no Buildbot API here");

    let moved = altered(|_| {
        let head = "Location: https://ci.example.org/\r\n".to_string();
        Some(Answer::Status("301 Moved", head, String::new()))
    });
    let done = execute(&moved.url(), "", "list builders");
    expect_error(&done, 69, "redirected to https://ci.example.org/ (301)");
}

/// The proxy's patience ended, and nobody knows whether the master did it.
#[test]
fn a_force_that_a_proxy_cut_off_may_have_started() {
    let server = altered(|request| match request.resource() {
        "/api/v2/builders/1/forceschedulers" => Some(Answer::json(
            json!({"forceschedulers": [{"name": "f", "enabled": true}]}),
        )),
        "/api/v2/forceschedulers/f" => Some(Answer::status("504 Gateway Timeout", "<html>")),
        _ => None,
    });
    let done = execute(&server.url(), "", "force build b1 x");
    expect_error(&done, 69, "b1 may have started, but nobody confirms it");
}

/// Nothing is said to be empty before it is known.
#[test]
fn a_question_before_the_first_poll_is_not_answered_with_nothing() {
    static MAY_ANSWER: AtomicBool = AtomicBool::new(false);
    let server = altered(|request| {
        while request.resource() == "/api/v2/builders" && !MAY_ANSWER.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(20));
        }
        None
    });
    let lab = Lab::new().with_fake_master(server).with_fake_irc();
    let _bot = lab.start_as("bot", POLLING, ANNOUNCING);
    let mut peer = lab.accept();
    peer.say("#lab", "bot: list builders");
    peer.barrier();
    MAY_ANSWER.store(true, Ordering::SeqCst);
    peer.expect_message("#lab", "2 builders");
}

/// `null` where a number or a flag was costs the item, not its page.
#[test]
fn an_odd_item_costs_itself() {
    let server = altered(|request| {
        let odd = json!({"builders": [
            {"builderid": null, "name": "odd", "tags": [], "masterids": [1]},
            {"builderid": 2, "name": "even", "tags": null, "masterids": [1]},
        ]});
        (request.resource() == "/api/v2/builders").then(|| Answer::json(odd))
    });
    let done = execute(&server.url(), "", "list all builders");
    assert_eq!(done.stdout, "even [offline]\n", "{done:?}");
}
