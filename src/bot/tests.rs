//! Tests of the bot as a whole, most without a socket: messages in, lines out.

use super::*;
use crate::bot::connection::ASK_AGAIN;
use crate::irc::wire::LineBuffer;
use crate::master::details::BuildsetInfo;
use crate::master::jobs::BuildsetAnswer;
use crate::master::model::BuildCursor;
use crate::master::model::tests::{build, builder};
use crate::master::resources::BuildRequest;
use crate::outcome::Outcome;
use crate::state_file::Watch;
use std::io::Read;
use std::net::TcpListener;
use std::sync::mpsc::sync_channel;

/// A bot that is online, in #dev.
struct Rig {
    bot: Bot,
    lookups: Receiver<JobOrder>,
    details: Receiver<JobOrder>,
    now: Instant,
}

impl Rig {
    fn new(more: &str, state: State) -> Rig {
        let text = format!("[buildbot]\nurl = http://m/\n[irc]\nhost = h\nnick = bot\n{more}");
        let no_file = &|_: &str| Err("no".to_owned());
        let config = Config::parse("c", &text, no_file).unwrap();
        let (lookup_sender, lookups) = sync_channel(9);
        let (detail_sender, details) = sync_channel(9);
        let handles = Handles {
            model: Arc::default(),
            tracked: TrackedRequests::default(),
            inputs: sync_channel(9).0,
            lookups: lookup_sender,
            orders: sync_channel(9).0,
            details: detail_sender,
            reload: Box::new(|| Err("no".to_owned())),
        };
        let mut rig = Rig {
            bot: Bot::new(config, state, handles).unwrap(),
            lookups,
            details,
            now: Instant::now(),
        };
        rig.bot.session.tick(rig.now);
        rig.bot.session.on_connected(rig.now);
        rig.bot.session.take_actions();
        rig.hear(":s 001 bot :hi\n:s 376 bot :x\n:bot!u@h JOIN #dev");
        rig
    }

    /// The master has a builder `app`, and the first poll is through.
    fn with_master(more: &str) -> Rig {
        let rig = Rig::new(more, State::default());
        let mut model = lock(&rig.bot.handles.model);
        model.set_builders(vec![builder(1, "app")]);
        model.catch_up(0);
        model.is_complete = true;
        drop(model);
        rig
    }

    /// The server says this, and the bot does what follows.
    fn hear(&mut self, lines: &str) {
        for message in LineBuffer::default().feed(format!("{lines}\n").as_bytes()) {
            self.bot.session.on_message(&message, self.now);
        }
        self.bot.take_actions(self.now).unwrap();
    }

    /// The master tells of a build.
    fn build(&mut self, id: u64, outcome: Option<Outcome>) {
        let mut build = build(id, id, outcome);
        build.started_at = unix_now() - 60;
        build.complete_at = outcome.map(|_| unix_now());
        let event = lock(&self.bot.handles.model).apply_build(build);
        let event = MasterEvent::Build(Box::new(event.unwrap()));
        let cursor = lock(&self.bot.handles.model).cursor();
        let happened = PollerEvent::Happened(vec![event], cursor);
        self.bot.take_input(Input::Poller(happened), self.now);
        self.bot.announce_ready(self.now);
    }

    /// All that it says, however long that takes.
    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(at) = self.bot.next_line_at() {
            self.now = self.now.max(at);
            let session = &self.bot.session;
            let routing = &self.bot.routing;
            let router = |target: &Name| route(session, routing, target);
            let line = self.bot.outbox.next(self.now, 0, &router);
            said.extend(line.map(|line| line.shown()));
        }
        said
    }
}

#[test]
fn a_build_is_announced_where_it_was_asked_for() {
    let mut rig = Rig::with_master("notify_events = finished\n[channel #dev]\n");
    rig.build(1, Some(Outcome::Success));
    let said = rig.said();
    assert_eq!(said.len(), 1);
    assert!(
        said[0].starts_with("PRIVMSG #dev :app #1 success, took 1m "),
        "{said:?}"
    );
    assert_eq!(rig.bot.state.cursor.last_build_id, Some(1));
    let told_in_pending = rig.bot.outbox.pending().len();
    assert_eq!(told_in_pending, 1, "until the server has answered");
}

#[test]
fn a_failure_waits_a_moment_for_who_did_it() {
    let mut rig = Rig::with_master("notify_events = finished\n[channel #dev]\n");
    rig.build(1, Some(Outcome::Failure));
    assert!(rig.said().is_empty());
    let (ticket, job) = rig.details.try_recv().unwrap();
    let asked = Job::Details {
        build: 1,
        request: None,
        wanted: Wanted {
            authors: true,
            ..Wanted::default()
        },
    };
    assert_eq!(job, asked);
    assert_eq!(
        rig.bot.state.cursor.last_build_id, None,
        "a crash now repeats it"
    );
    let details = Details {
        known: Wanted {
            authors: true,
            ..Wanted::default()
        },
        authors: vec!["Ann <a@x>".into()],
        ..Details::default()
    };
    let result = Ok(JobResult::Details { build: 1, details });
    rig.bot.take_input(Input::JobDone(ticket, result), rig.now);
    rig.bot.announce_ready(rig.now);
    let said = rig.said();
    assert!(said[0].contains(", blame Ann #/builders"), "{said:?}");
    assert_eq!(rig.bot.state.cursor.last_build_id, Some(1));
}

#[test]
fn a_slow_answer_keeps_no_news_back() {
    let mut rig = Rig::with_master("notify_events = finished\n[channel #dev]\n");
    rig.build(1, Some(Outcome::Failure));
    rig.now += Duration::from_secs(1);
    rig.bot.announce_ready(rig.now);
    let said = rig.said();
    assert!(said[0].contains("app #1 failure"), "{said:?}");
}

#[test]
fn mute_holds_back_and_unmute_sums_up() {
    let mut rig = Rig::with_master("notify_events = finished\n[channel #dev]\n");
    rig.hear(":joe!u@h PRIVMSG #dev :bot: mute");
    rig.build(1, Some(Outcome::Success));
    rig.build(2, Some(Outcome::Success));
    assert_eq!(rig.said(), ["PRIVMSG #dev :muted; `unmute` ends it"]);
    rig.hear(":joe!u@h PRIVMSG #dev :bot: unmute");
    let said = rig.said();
    assert_eq!(said[0], "PRIVMSG #dev :unmuted");
    assert!(
        said[1].starts_with("PRIVMSG #dev :while muted: success app #1, #2 "),
        "{said:?}"
    );
    assert_eq!(said.len(), 2);
}

#[test]
fn notify_off_drops_what_waits_there() {
    let mut rig = Rig::with_master("notify_events = finished\n[channel #dev]\n");
    rig.build(1, Some(Outcome::Success));
    rig.hear(":joe!u@h PRIVMSG #dev :bot: notify off");
    assert_eq!(
        rig.said(),
        ["PRIVMSG #dev :notify is off: nothing is announced here"]
    );
}

#[test]
fn who_cannot_be_told_hears_it_when_they_are_back() {
    let mut rig = Rig::new("pm_to_nicks = joe\n[channel #dev]\n", State::default());
    let news = |target: &str| Announcement {
        target: target.into(),
        at: unix_now(),
        label: "app #1".into(),
        text: "app #1".into(),
        ..Announcement::default()
    };
    for nick in ["joe", "guest"] {
        let name = rig.bot.canonical(nick);
        rig.bot.outbox.announce(&name, news(nick));
    }
    let mut said = Vec::new();
    while said.len() < 2 {
        let session = &rig.bot.session;
        let routing = &rig.bot.routing;
        let router = |target: &Name| route(session, routing, target);
        said.extend(rig.bot.outbox.next(rig.now, 0, &router));
    }
    rig.bot.ask_after_lines(rig.now);
    rig.hear(":s 401 bot Joe :No such nick\n:s 401 bot guest :No such nick");
    rig.hear(":s PONG s :1-told");
    let pending = rig.bot.outbox.pending();
    let waiting: Vec<&str> = pending.iter().map(|a| a.target.as_str()).collect();
    assert_eq!(waiting, ["joe"], "a guest's nick may be another's");
    rig.hear(":joe!u@h JOIN #dev");
    assert_eq!(rig.said(), ["PRIVMSG joe :app #1"]);
}

/// A bouncer may have lost the question, or the network been too busy for it.
#[test]
fn a_question_without_an_answer_is_asked_again() {
    let mut rig = Rig::with_master("notify_events = finished\n[channel #dev]\n");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let stream = net::connect("127.0.0.1", port, None).unwrap();
    rig.bot.connection = Connection::new(0, stream);
    rig.hear(":s CAP bot NEW :znc.in/self-message");
    rig.build(1, Some(Outcome::Success));
    rig.bot.flush(rig.now);
    rig.bot.flush(rig.now + ASK_AGAIN / 2);
    rig.now += ASK_AGAIN;
    rig.bot.save_at = None;
    assert_eq!(rig.bot.deadline(), rig.now, "it wakes for that");
    rig.bot.flush(rig.now);
    rig.hear(":s 318 bot 2-told :End of WHOIS list");
    // What was before the first one is lost.
    rig.bot.flush(rig.now + ASK_AGAIN);
    drop(rig);
    let mut sent = String::new();
    let (mut peer, _) = server.accept().unwrap();
    peer.read_to_string(&mut sent).unwrap();
    let commands: Vec<&str> = sent.lines().map(|line| &line[..4]).collect();
    let expected = ["PRIV", "WHOI", "WHOI", "PRIV", "WHOI"];
    assert_eq!(commands, expected, "{sent}");
}

#[test]
fn pending_lines_of_channels_that_are_gone_are_dropped() {
    let news = |target: &str, text: &str| Announcement {
        target: target.into(),
        at: unix_now(),
        text: text.into(),
        label: text.into(),
        ..Announcement::default()
    };
    let state = State {
        pending: vec![news("#Dev", "app #1"), news("#gone", "app #2")],
        ..State::default()
    };
    let mut rig = Rig::new("[channel #dev]\n", state);
    assert_eq!(rig.said(), ["PRIVMSG #dev :app #1"]);
}

#[test]
fn what_is_left_is_watched_no_more() {
    let watch = |target: &str| Watch {
        target: target.into(),
        request: 7,
        ..Watch::default()
    };
    let state = State {
        watches: vec![watch("#dev"), watch("joe")],
        ..State::default()
    };
    let more = "[channel #dev]\n[authorization]\nleave = everyone\n";
    let mut rig = Rig::new(more, state);
    rig.hear(":joe!u@h PRIVMSG #dev :bot: leave");
    assert_eq!(rig.bot.routing.watches.export(), [watch("joe")]);
}

#[test]
fn a_list_of_nothing_has_no_colon() {
    let mut rig = Rig::with_master("[channel #dev]\n");
    rig.hear(":joe!u@h PRIVMSG bot :list workers");
    assert_eq!(rig.said(), ["PRIVMSG joe :0 workers"]);
}

#[test]
fn a_question_before_the_first_poll_waits_for_it() {
    let mut rig = Rig::new("[channel #dev]\n", State::default());
    rig.hear(":joe!u@h PRIVMSG bot :status\n:joe!u@h PRIVMSG bot :source");
    assert_eq!(rig.said(), ["PRIVMSG joe :Buildbot: https://buildbot.net/"]);
    assert!(rig.lookups.try_recv().is_err());
    let mut model = lock(&rig.bot.handles.model);
    model.set_builders(vec![builder(1, "app")]);
    model.catch_up(0);
    model.is_complete = true;
    drop(model);
    rig.bot
        .take_input(Input::Poller(PollerEvent::FirstPoll), rig.now);
    rig.bot.answer_held(rig.now);
    assert!(rig.lookups.try_recv().is_ok(), "now it is looked up");
}

#[test]
fn another_bot_that_answers_us_is_not_answered_for_ever() {
    let mut rig = Rig::new("[channel #dev]\n", State::default());
    for _ in 0..50 {
        rig.hear(":other!u@h PRIVMSG bot :unknown command `unknown`; try `help`");
    }
    assert_eq!(rig.said().len(), 5);
    rig.hear(":joe!u@h PRIVMSG bot :nonsense");
    assert_eq!(rig.said().len(), 1, "others are answered");
}

#[test]
fn the_cursor_of_an_earlier_run_is_gone_on_from() {
    let cursor = BuildCursor {
        last_build_id: Some(9),
        running: [7].into(),
        ..BuildCursor::default()
    };
    let state = State {
        cursor: cursor.clone(),
        ..State::default()
    };
    let rig = Rig::new("[channel #dev]\n", state);
    assert_eq!(lock(&rig.bot.handles.model).cursor(), cursor);
}

/// The end of a build of `app` by this request, which is of a buildset.
fn ended(request: u64, outcome: Outcome) -> BuildEvent {
    let mut build = build(request, request, Some(outcome));
    build.request_id = Some(request);
    build.started_at = unix_now() - 60;
    build.complete_at = Some(unix_now());
    BuildEvent {
        builder: "app".into(),
        build,
        is_new: true,
        ends_request: true,
        ..BuildEvent::default()
    }
}

/// The master says which requests belong together.
fn tell_buildset(rig: &mut Rig, requests: &[u64]) {
    let request = |id: &u64| BuildRequest {
        id: *id,
        builder_id: 1,
        buildset_id: 7,
        ..BuildRequest::default()
    };
    let info = BuildsetInfo {
        id: 7,
        requests: requests.iter().map(request).collect(),
        ..BuildsetInfo::default()
    };
    let result = Ok(JobResult::Buildset {
        request: requests[0],
        answer: BuildsetAnswer::Known(Box::new(info)),
    });
    rig.bot.tend_buildsets(rig.now);
    rig.bot
        .take_input(Input::JobDone(NO_TICKET, result), rig.now);
    rig.bot.tend_buildsets(rig.now);
}

const BY_CHANGE: &str =
    "notify_events = finished\nannounce = changes\nshow_blame_list = no\n[channel #dev]\n";

#[test]
fn what_was_started_together_is_one_line() {
    let mut rig = Rig::with_master(BY_CHANGE);
    rig.bot.announce_build(&ended(1, Outcome::Failure), None);
    tell_buildset(&mut rig, &[1, 2]);
    assert!(rig.said().is_empty());
    rig.bot.announce_build(&ended(2, Outcome::Success), None);
    rig.bot.tend_buildsets(rig.now);
    let said = rig.said();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains(":buildset 7: failure app #1; success app #2;"),
        "{said:?}"
    );
}

#[test]
fn a_place_that_wants_builds_now_loses_nothing() {
    let mut rig = Rig::with_master(BY_CHANGE);
    rig.bot.announce_build(&ended(1, Outcome::Failure), None);
    tell_buildset(&mut rig, &[1, 2]);
    let by_build = BY_CHANGE.replace("announce = changes\n", "");
    let text = format!("[buildbot]\nurl = http://m/\n[irc]\nhost = h\nnick = bot\n{by_build}");
    let config = Config::parse("c", &text, &|_: &str| Err("no".to_owned())).unwrap();
    rig.bot.reconfigure(config, rig.now);
    rig.bot.announce_build(&ended(2, Outcome::Success), None);
    assert!(rig.said()[0].contains("app #2 success"));
    rig.bot.buildsets.on_dropped(2);
    rig.bot.tend_buildsets(rig.now);
    let said = rig.said();
    assert!(
        said.len() == 1 && said[0].contains("app #1 failure"),
        "{said:?}"
    );
}

#[test]
fn what_was_told_by_itself_is_not_told_again() {
    let mut rig = Rig::with_master(BY_CHANGE);
    let target = rig.bot.canonical("#dev");
    rig.bot.routing.watches.add(crate::routing::watches::Watch {
        target,
        what: crate::routing::watches::Watched::Request(1),
        mask: "joe!u@h".into(),
    });
    rig.bot.announce_build(&ended(1, Outcome::Failure), None);
    assert_eq!(rig.said().len(), 1, "to those who wait for it");
    tell_buildset(&mut rig, &[1]);
    assert!(rig.said().is_empty());
}

#[test]
fn builders_that_are_gone_are_known_by_their_builds() {
    let mut rig = Rig::with_master(BY_CHANGE);
    rig.bot.announce_build(&ended(1, Outcome::Failure), None);
    rig.bot.announce_build(&ended(2, Outcome::Success), None);
    lock(&rig.bot.handles.model).set_builders(Vec::new());
    tell_buildset(&mut rig, &[1, 2]);
    let said = rig.said();
    assert!(
        said.len() == 1 && said[0].contains("failure app #1; success app #2"),
        "{said:?}"
    );
}
