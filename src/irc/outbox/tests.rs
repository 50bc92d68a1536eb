//! Tests of the outbox.

use super::*;
use crate::notify_events::EventSet;

fn name(text: &str) -> Name {
    Casemapping::default().name(text)
}

fn news(target: &str, number: usize, outcome: Outcome) -> Announcement {
    Announcement {
        target: target.into(),
        at: 100,
        outcome: Some(outcome),
        label: format!("b{number} #{number}"),
        builder: format!("b{number}"),
        url: format!("http://m/{number}"),
        text: format!("b{number} #{number} {} http://m/{number}", outcome.word()),
        ..Announcement::default()
    }
}

fn colored(target: &str, number: usize) -> Announcement {
    Announcement {
        text: format!("b{number} #{number} \u{3}04failure\u{f}"),
        ..news(target, number, Outcome::Failure)
    }
}

fn refusal() -> Refusal {
    Refusal {
        reason: "Cannot send to channel (404)".into(),
        is_rate: false,
        is_gone: false,
    }
}

fn route() -> Route {
    Route {
        budget: 400,
        is_notice: false,
        is_muted: false,
    }
}

fn anywhere(_: &Name) -> Option<Route> {
    Some(route())
}

/// An outbox with its clock.
struct Rig {
    outbox: Outbox,
    start: Instant,
    now: Instant,
}

impl Rig {
    fn new() -> Rig {
        let now = Instant::now();
        Rig {
            outbox: Outbox::new(true, now),
            start: now,
            now,
        }
    }

    fn announce(&mut self, announcement: Announcement) {
        let target = name(&announcement.target);
        self.outbox.announce(&target, announcement);
    }

    fn reply(&mut self, target: &str, lines: &[&str]) {
        let lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        self.outbox.reply(&name(target), &lines, 0, &route());
    }

    /// Everything that is said until nothing waits, with the second at which it is said. Refused
    /// targets are not waited for.
    fn drain(&mut self) -> Vec<(u64, String)> {
        let mut said = Vec::new();
        let patience = self.now + Duration::from_secs(600);
        while let Some(at) = self.outbox.deadline(&anywhere) {
            if at > patience || said.len() > 1000 {
                break;
            }
            let before = self.now;
            self.now = self.now.max(at);
            while let Some(line) = self.outbox.next(self.now, 0, &anywhere) {
                said.push(((self.now - self.start).as_secs(), line.shown()));
            }
            if self.now == before && self.outbox.deadline(&anywhere) == Some(at) {
                break;
            }
        }
        said
    }

    fn lines(&mut self) -> Vec<String> {
        self.drain().into_iter().map(|(_, line)| line).collect()
    }

    /// The lines that go without waiting for a target that refuses us.
    fn lines_now(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(line) = self.outbox.next(self.now, 0, &anywhere) {
            said.push(line.shown());
        }
        said
    }

    fn confirm(&mut self) -> Confirmation {
        let last = self
            .outbox
            .unconfirmed()
            .expect("a line whose fate is open");
        self.outbox.confirm(last, self.now)
    }

    fn refuse(&mut self, target: &str) {
        self.outbox.on_refused(&name(target), &refusal());
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

// Order and pace

#[test]
fn a_burst_then_one_line_every_two_seconds() {
    // People leave some of the burst to channels.
    for (target, expected) in [
        ("#c", [0, 0, 0, 0, 0, 2, 4, 6]),
        ("joe", [0, 0, 0, 2, 4, 6, 8, 10]),
    ] {
        let mut rig = Rig::new();
        rig.reply(target, &["l"; 8]);
        let times: Vec<u64> = rig.drain().iter().map(|(at, _)| *at).collect();
        assert_eq!(times, expected, "to {target}");
    }
}

#[test]
fn replies_come_first_and_targets_take_turns() {
    let mut rig = Rig::new();
    for number in 1..3 {
        rig.announce(news("#a", number, Outcome::Success));
        rig.announce(news("#b", number, Outcome::Success));
    }
    rig.reply("#c", &["one", "two"]);
    let targets: Vec<String> = rig
        .lines()
        .iter()
        .map(|line| line[8..10].to_owned())
        .collect();
    assert_eq!(targets, ["#c", "#c", "#a", "#b", "#a", "#b"]);
}

#[test]
fn channels_come_before_people_who_have_their_share() {
    let mut rig = Rig::new();
    for person in ["ann", "joe", "kim"] {
        rig.reply(person, &["hi"]);
    }
    rig.reply("#c", &["l"; 6]);
    let lines = rig.lines();
    let order: String = lines
        .iter()
        .map(|line| if line.contains("#c") { 'c' } else { 'p' })
        .collect();
    assert_eq!(order, "ccpccpccp");
}

#[test]
fn a_crowd_that_asks_for_our_version_keeps_no_channel_waiting() {
    let mut rig = Rig::new();
    for number in 0..60 {
        let nick = name(&format!("n{number}"));
        rig.outbox.reply_ctcp(&nick, "\u{1}VERSION x\u{1}".into());
    }
    rig.lines_now();
    rig.reply("#c", &["answer"]);
    let said = rig.drain();
    let answer = said
        .iter()
        .position(|(_, line)| line.ends_with(":answer"))
        .unwrap();
    assert!(answer <= 1, "{said:?}");
    let mut rig = Rig::new();
    for _ in 0..100 {
        rig.outbox
            .reply_ctcp(&name("joe"), "\u{1}VERSION x\u{1}".into());
    }
    assert_eq!(rig.lines().len(), CTCP_REPLIES);
}

#[test]
fn long_talk_does_not_keep_news_back() {
    let mut rig = Rig::new();
    rig.reply("#d", &["line"; 10]);
    rig.reply("#e", &["line"; 10]);
    rig.announce(news("#c", 1, Outcome::Failure));
    let position = rig.lines().iter().position(|line| line.contains("b1 #1"));
    assert_eq!(position, Some(REPLIES_IN_A_ROW));
}

#[test]
fn a_question_to_the_server_does_not_wait_for_a_long_reply() {
    let mut rig = Rig::new();
    rig.reply("joe", &["x"; 40]);
    let whois = Line::new("WHOIS", &["joe"], None);
    rig.outbox.ask_server(&name("joe"), whois);
    assert_eq!(rig.lines()[0], "WHOIS joe");
}

#[test]
fn another_question_ends_a_long_reply() {
    let mut rig = Rig::new();
    rig.reply("joe", &["x"; 200]);
    rig.lines_now();
    rig.reply("joe", &["help"]);
    assert_eq!(rig.lines(), ["PRIVMSG joe :help"]);
    rig.reply("joe", &["a", "b"]);
    rig.reply("joe", &["c"]);
    assert_eq!(rig.lines().len(), 3, "short ones are not ended");
}

#[test]
fn without_pacing_everything_goes_at_once() {
    let mut rig = Rig::new();
    rig.outbox = Outbox::new(false, rig.now);
    (0..90).for_each(|number| rig.announce(news("#c", number, Outcome::Success)));
    rig.reply("#d", &["x"; 3]);
    let said = rig.drain();
    assert_eq!(said.len(), 93);
    assert!(said.iter().all(|(at, _)| *at == 0));
}

// Replies

#[test]
fn a_long_reply_is_cut_in_a_channel_and_whole_in_private() {
    let mut rig = Rig::new();
    let lines: Vec<String> = (0..30).map(|i| format!("line {i}")).collect();
    rig.outbox.reply(&name("#c"), &lines, 5, &route());
    let said = rig.lines();
    assert_eq!(said.len(), 11);
    assert_eq!(said[10], "PRIVMSG #c :… and 25 more, ask in private");
    rig.outbox.reply(&name("joe"), &lines, 0, &route());
    assert_eq!(rig.lines().len(), 30);
}

#[test]
fn enough_is_enough() {
    let mut rig = Rig::new();
    (0..10).for_each(|_| rig.reply("#c", &["x"; 10]));
    assert!(!rig.outbox.takes_reply(&name("#c")));
    assert!(rig.outbox.takes_reply(&name("#d")));
    (0..3000).for_each(|i| rig.reply(&format!("n{i}"), &["x"; 10]));
    assert!(!rig.outbox.takes_reply(&name("joe")), "a crowd");
    assert!(
        rig.outbox.takes_reply(&name("#d")),
        "a channel is not a part of it"
    );
}

#[test]
fn a_list_takes_as_few_lines_as_it_needs() {
    let mut rig = Rig::new();
    let items: Vec<String> = (0..100).map(|i| format!("builder-{i:02}")).collect();
    rig.outbox
        .reply_list(&name("joe"), "100 builders", &items, 0, &route());
    let said = rig.lines();
    assert!(
        said.len() == 4 && said.iter().all(|line| line.len() <= 413),
        "{said:?}"
    );
    let text: Vec<&str> = said
        .iter()
        .map(|line| &line["PRIVMSG joe :".len()..])
        .collect();
    assert_eq!(
        text.join(" "),
        format!("100 builders: {}", items.join(", "))
    );
    let many: Vec<String> = (0..1000).map(|i| format!("builder-{i:03}")).collect();
    rig.outbox
        .reply_list(&name("#c"), "2000 builders", &many, 1000, &route());
    let said = rig.lines();
    assert_eq!(said.len(), 11);
    let named: usize = said
        .iter()
        .map(|line| line.matches("builder-").count())
        .sum();
    let hint = format!("… and {} more, ask in private", 2000 - named);
    assert!(said[10].ends_with(&hint), "{}", said[10]);
    let long = vec!["x".repeat(1000)];
    rig.outbox
        .reply_list(&name("joe"), "1 builder", &long, 0, &route());
    assert!(rig.lines().iter().all(|line| line.len() <= 413));
}

// Summaries

#[test]
fn fifty_builds_at_once_are_all_named_within_ten_seconds_failures_first() {
    let mut rig = Rig::new();
    for number in 0..50 {
        let is_failure = number % 10 == 9;
        let outcome = if is_failure {
            Outcome::Failure
        } else {
            Outcome::Success
        };
        rig.announce(news("#c", number, outcome));
    }
    let said = rig.drain();
    let first = "PRIVMSG #c :meanwhile: failure b9 #9, b19 #19";
    assert!(said[0].1.starts_with(first), "{said:?}");
    assert!(said.last().unwrap().0 <= 10, "{said:?}");
    let all: String = said
        .iter()
        .map(|(_, line)| line.replace([';', ' '], ","))
        .collect();
    for number in 0..50 {
        let label = format!("b{number},#{number},");
        assert!(all.contains(&label), "{label} {said:?}");
    }
    assert_eq!(rig.outbox.pending().len(), 50);
    assert!(rig.confirm().told.len() == 1);
    assert!(rig.outbox.pending().is_empty());
}

#[test]
fn a_summary_ends_with_where_builders_stand_and_a_link() {
    let mut rig = Rig::new();
    let of = |builder: &str, number: usize, outcome| Announcement {
        label: format!("{builder} #{number}"),
        builder: builder.into(),
        ..news("#c", number, outcome)
    };
    rig.announce(of("app", 11, Outcome::Failure));
    rig.announce(of("app", 13, Outcome::Failure));
    rig.announce(of("app", 15, Outcome::Success));
    rig.announce(of("lib", 4, Outcome::Failure));
    let line = "PRIVMSG #c :meanwhile: failure app #11, #13, lib #4; success app #15; \
                now app success http://m/4";
    assert_eq!(rig.lines(), [line]);
}

#[test]
fn a_summary_tells_of_a_start_only_while_the_end_is_not_known() {
    let mut rig = Rig::new();
    for number in 0..4 {
        rig.announce(Announcement {
            outcome: None,
            label: format!("b{number} #{number} started"),
            ..news("#c", number, Outcome::Success)
        });
    }
    (0..3).for_each(|number| rig.announce(news("#c", number, Outcome::Success)));
    let line = "PRIVMSG #c :meanwhile: success b0 #0, b1 #1, b2 #2; also b3 #3 started http://m/0";
    assert_eq!(rig.lines(), [line]);
}

#[test]
fn beyond_its_size_it_keeps_the_failures_and_counts_the_rest() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 0, Outcome::Failure));
    (1..150).for_each(|number| rig.announce(news("#c", number, Outcome::Success)));
    assert_eq!(rig.outbox.pending().len(), ANNOUNCEMENTS + 1);
    // What is only counted outlives a restart, and a lost connection.
    let mut again = Rig::new();
    rig.outbox
        .pending()
        .into_iter()
        .for_each(|a| again.announce(a));
    let counts = |line: &String| line.contains(" and 50 more");
    assert!(counts(again.lines().last().unwrap()));
    again.outbox.on_disconnected(again.now);
    assert!(counts(again.lines().last().unwrap()));
    let said = rig.lines();
    assert!(said[0].contains("failure b0 #0"), "{said:?}");
    assert!(counts(said.last().unwrap()), "{said:?}");
}

#[test]
fn what_is_named_and_what_is_counted_make_the_whole() {
    let mut rig = Rig::new();
    (0..200).for_each(|number| {
        let is_bad = number % 5 == 4;
        let outcome = if is_bad {
            Outcome::Failure
        } else {
            Outcome::Success
        };
        rig.announce(news("#c", number, outcome));
    });
    let mut told = 0;
    for line in rig.lines() {
        let text = line.strip_prefix("PRIVMSG #c :").unwrap().to_owned();
        told += text.matches(" #").count();
        if let Some((before, _)) = text.split_once(" more") {
            let count = before.rsplit(' ').next().unwrap();
            told += count.parse::<usize>().unwrap();
        }
    }
    assert_eq!(told, 200);
}

#[test]
fn what_is_too_old_is_one_line() {
    let mut rig = Rig::new();
    for number in 0..90 {
        let outcome = if number == 50 {
            Outcome::Failure
        } else {
            Outcome::Success
        };
        rig.announce(news("#c", number, outcome));
    }
    let line = rig.outbox.next(rig.now, 101, &anywhere).unwrap().shown();
    let start = "PRIVMSG #c :missed while away: failure b50 #50; success b0 #0, ";
    assert!(line.starts_with(start), "{line}");
    assert!(line.ends_with(" more http://m/50"), "{line}");
    assert!(rig.outbox.is_idle());
}

#[test]
fn a_long_announcement_keeps_its_link() {
    let text = format!("app #1 failure: {} http://m/#/1", "\u{6f22}".repeat(300));
    for budget in [200, 380, 430] {
        let line = fit(&text, budget);
        assert!(line.len() <= budget && line.len() > budget - 4, "{line}");
        assert!(line.ends_with("\u{6f22}… http://m/#/1"), "{line}");
    }
    assert_eq!(fit("short http://m/", 15), "short http://m/");
    let link = format!("app #1 {}", "x".repeat(500));
    assert!(fit(&link, 400).starts_with("app #1… xxx"));
    assert_eq!(fit(&link, 400).len(), 400);
}

// Mutes

#[test]
fn what_happens_while_muted_is_one_line_when_it_ends() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Success));
    rig.outbox.mark_muted(&name("#c"));
    rig.announce(Announcement {
        was_muted: true,
        ..news("#c", 9, Outcome::Failure)
    });
    let muted = |_: &Name| {
        Some(Route {
            is_muted: true,
            ..route()
        })
    };
    assert!(rig.outbox.next(rig.now, 0, &muted).is_none());
    assert!(rig.outbox.deadline(&muted).is_none());
    rig.reply("#c", &["but questions are answered"]);
    assert!(rig.outbox.next(rig.now, 0, &muted).is_some());
    rig.announce(Announcement {
        is_watched: true,
        ..news("#c", 5, Outcome::Failure)
    });
    let watched = rig.outbox.next(rig.now, 0, &muted).unwrap().shown();
    assert!(watched.contains("b5 #5 failure"), "{watched}");
    assert!(rig.outbox.next(rig.now, 0, &muted).is_none());
    let line = "PRIVMSG #c :while muted: failure b9 #9; success b1 #1 http://m/9";
    assert_eq!(rig.lines(), [line]);
}

#[test]
fn notify_off_drops_what_waits() {
    let mut rig = Rig::new();
    (0..5).for_each(|number| rig.announce(news("#c", number, Outcome::Failure)));
    rig.reply("#c", &["notify is off"]);
    rig.outbox.keep_announcements(&name("#c"), EventSet::EMPTY);
    assert_eq!(rig.lines(), ["PRIVMSG #c :notify is off"]);
    assert!(rig.outbox.pending().is_empty());
}

// Delivery

#[test]
fn what_a_lost_connection_may_have_swallowed_is_said_again() {
    let mut rig = Rig::new();
    (0..3).for_each(|number| rig.announce(news("#c", number, Outcome::Success)));
    rig.outbox.next(rig.now, 0, &anywhere);
    let first = rig.outbox.unconfirmed().unwrap();
    rig.outbox.next(rig.now, 0, &anywhere);
    rig.outbox.confirm(first, rig.now);
    rig.reply("joe", &["stale"]);
    rig.outbox.on_disconnected(rig.now);
    let said = rig.lines();
    assert_eq!(said.len(), 2);
    assert!(said[0].contains("b1 #1") && said[1].contains("b2 #2"));
}

#[test]
fn a_channel_that_takes_no_colours_gets_plain_lines_from_then_on() {
    let mut rig = Rig::new();
    rig.announce(colored("#c", 1));
    rig.announce(colored("#c", 2));
    assert_eq!(rig.lines().len(), 2);
    rig.refuse("#c");
    assert!(
        rig.lines_now().is_empty(),
        "not before it is clear whose refusal that is"
    );
    rig.refuse("#c");
    let confirmation = rig.confirm();
    assert_eq!(confirmation.unreachable, []);
    let plain = ["PRIVMSG #c :b1 #1 failure", "PRIVMSG #c :b2 #2 failure"];
    assert_eq!(rig.lines(), plain);
    assert!(rig.confirm().told.len() == 1);
    rig.announce(colored("#c", 3));
    assert_eq!(rig.lines(), ["PRIVMSG #c :b3 #3 failure"]);
    rig.outbox.on_disconnected(rig.now);
    assert_eq!(
        rig.lines(),
        ["PRIVMSG #c :b3 #3 \u{3}04failure\u{f}"],
        "who knows now"
    );
}

#[test]
fn a_coloured_reply_is_said_again_without() {
    let mut rig = Rig::new();
    rig.reply("#c", &["app: \u{3}04failure\u{f}"]);
    rig.lines();
    rig.refuse("#c");
    rig.confirm();
    assert_eq!(rig.lines(), ["PRIVMSG #c :app: failure"]);
}

#[test]
fn what_was_passed_on_before_the_colours_is_not_said_again() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Success));
    rig.announce(colored("#c", 2));
    rig.lines();
    rig.refuse("#c");
    rig.confirm();
    assert_eq!(rig.lines(), ["PRIVMSG #c :b2 #2 failure"]);
}

#[test]
fn a_refusal_waits_for_a_sign_or_a_time_that_grows() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Failure));
    let mut waits = Vec::new();
    for _ in 0..4 {
        assert_eq!(rig.lines_now().len(), 1);
        rig.refuse("#c");
        rig.confirm();
        let until = rig.outbox.deadline(&anywhere).unwrap();
        waits.push((until - rig.now).as_secs());
        assert!(rig.lines_now().is_empty());
        rig.now = until;
    }
    assert_eq!(waits, [60, 120, 240, 480]);
    rig.lines_now();
    rig.refuse("#c");
    rig.confirm();
    rig.wait(20);
    rig.outbox.allow(&name("#C"));
    assert_eq!(rig.lines_now(), ["PRIVMSG #c :b1 #1 failure http://m/1"]);
    assert!(rig.confirm().told.len() == 1);
}

/// What the channel takes, by what is in the line: a filter. Now and then there is other news. Returns all that was said
/// to it.
fn said_through_filter(rig: &mut Rig, forbidden: &str) -> Vec<String> {
    let mut said = Vec::new();
    for round in 0..20 {
        if round % 4 == 3 {
            rig.announce(news("#c", 100 + round, Outcome::Success));
        }
        let lines = rig.lines_now();
        let refused = lines.iter().filter(|line| line.contains(forbidden)).count();
        (0..refused).for_each(|_| rig.refuse("#c"));
        said.extend(lines);
        if rig.outbox.unconfirmed().is_some() {
            rig.confirm();
        }
        rig.wait(120);
    }
    said
}

#[test]
fn a_line_that_is_refused_for_its_words_holds_up_no_other() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Success));
    rig.announce(news("#c", 2, Outcome::Failure));
    let said = said_through_filter(&mut rig, "b2 #2");
    let count = |text: &str| said.iter().filter(|line| line.contains(text)).count();
    assert!(count("b1 #1") <= 2, "{said:?}");
    assert!(count("b2 #2") <= 6, "{said:?}");
    assert!(rig.outbox.pending().is_empty(), "it was given up");
    rig.announce(news("#c", 3, Outcome::Success));
    assert_eq!(rig.lines_now().len(), 1);
    assert!(rig.confirm().told.len() == 1);
}

/// It is refused before anything else is known of the channel, and later as a part of a summary.
#[test]
fn a_summary_that_is_refused_for_one_of_its_words_is_told_without() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 2, Outcome::Failure));
    for number in 3..8 {
        rig.announce(news("#c", number, Outcome::Success));
    }
    let said = said_through_filter(&mut rig, "b2 #2");
    for number in 3..8 {
        let label = format!("b{number} #{number}");
        let delivered = |line: &&String| line.contains(&label) && !line.contains("b2 #2");
        assert!(said.iter().filter(delivered).count() >= 1, "{said:?}");
    }
    assert!(rig.outbox.pending().is_empty(), "{said:?}");
}

#[test]
fn what_a_channel_refuses_for_a_while_is_summed_up_afterwards() {
    let mut rig = Rig::new();
    for number in 1..4 {
        rig.announce(news("#c", number, Outcome::Success));
        rig.lines_now();
        rig.refuse("#c");
        rig.confirm();
        rig.wait(3600);
    }
    for number in 4..9 {
        rig.announce(news("#c", number, Outcome::Success));
    }
    let mut said = Vec::new();
    while !rig.outbox.pending().is_empty() {
        said.extend(rig.lines_now());
        rig.confirm();
        rig.wait(60);
    }
    assert!(said.len() <= 4, "{said:?}");
}

/// A channel that is heard, moderated for a while, and heard again.
#[test]
fn what_a_moderated_channel_refuses_is_not_given_up() {
    let mut rig = Rig::new();
    for number in 1..20 {
        rig.announce(news("#c", number, Outcome::Success));
        rig.lines_now();
        rig.refuse("#c");
        rig.confirm();
        rig.outbox.allow(&name("#c"));
        rig.lines_now();
        rig.confirm();
        rig.wait(60);
    }
    assert!(rig.outbox.pending().is_empty(), "all have arrived");
    rig.announce(news("#c", 20, Outcome::Success));
    for _ in 0..10 {
        rig.lines_now();
        rig.refuse("#c");
        rig.confirm();
        rig.wait(4000);
    }
    assert_eq!(rig.outbox.pending().len(), 1);
}

/// After a first refusal nobody knows yet whether it was for the words.
#[test]
fn other_news_is_tried_at_once_after_a_first_refusal_and_not_after_two() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Success));
    rig.lines_now();
    rig.refuse("#c");
    rig.confirm();
    rig.announce(news("#c", 2, Outcome::Success));
    assert_eq!(rig.lines_now(), ["PRIVMSG #c :b2 #2 success http://m/2"]);
    rig.refuse("#c");
    rig.confirm();
    rig.announce(news("#c", 3, Outcome::Success));
    assert!(rig.lines_now().is_empty());
}

#[test]
fn a_refusal_for_another_reason_does_not_cost_the_colours() {
    let mut rig = Rig::new();
    rig.announce(colored("#c", 1));
    for _ in 0..2 {
        // With colours, then without.
        assert_eq!(rig.lines_now().len(), 1);
        rig.refuse("#c");
        rig.confirm();
    }
    assert!(rig.lines_now().is_empty(), "the channel takes nothing");
    rig.outbox.allow(&name("#c"));
    assert_eq!(rig.lines_now(), ["PRIVMSG #c :b1 #1 \u{3}04failure\u{f}"]);
}

#[test]
fn what_was_lost_on_its_way_is_said_again() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Failure));
    rig.announce(news("#c", 2, Outcome::Failure));
    let said = rig.lines_now();
    rig.outbox.lose(1);
    assert!(rig.confirm().told.len() == 1);
    assert_eq!(rig.lines(), [said[0].clone()]);
}

#[test]
fn who_is_gone_may_never_be_told() {
    let mut rig = Rig::new();
    for (is_rate, is_gone, expected) in [
        (false, false, vec![]),
        (true, false, vec![]),
        (false, true, vec![name("joe")]),
    ] {
        rig.announce(news("joe", 1, Outcome::Failure));
        rig.wait(100_000);
        rig.lines_now();
        let refusal = Refusal {
            is_rate,
            is_gone,
            ..refusal()
        };
        rig.outbox.on_refused(&name("joe"), &refusal);
        assert_eq!(rig.confirm().unreachable, expected);
    }
}

#[test]
fn a_refusal_for_a_rate_is_tried_again_soon() {
    let mut rig = Rig::new();
    rig.announce(news("joe", 1, Outcome::Failure));
    rig.lines_now();
    let too_fast = Refusal {
        is_rate: true,
        is_gone: false,
        ..refusal()
    };
    rig.outbox.on_refused(&name("joe"), &too_fast);
    rig.confirm();
    let until = rig.outbox.deadline(&anywhere).unwrap();
    assert_eq!(until - rig.now, RATE_RETRY);
}

#[test]
fn a_refusal_of_what_we_did_not_say_is_none() {
    let mut rig = Rig::new();
    rig.refuse("#c");
    rig.announce(news("#c", 1, Outcome::Failure));
    assert_eq!(rig.lines_now().len(), 1);
    rig.refuse("#other");
    assert!(rig.confirm().told.len() == 1);
}

#[test]
fn replies_to_who_cannot_hear_them_are_dropped() {
    let mut rig = Rig::new();
    rig.reply("joe", &["x"; 8]);
    rig.lines_now();
    rig.refuse("joe");
    rig.confirm();
    rig.wait(100_000);
    assert!(rig.lines_now().is_empty());
}

#[test]
fn while_a_bouncer_is_without_its_network_nothing_is_told() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Failure));
    rig.lines_now();
    rig.outbox.set_upstream(false);
    assert!(rig.outbox.unconfirmed().is_none());
    rig.announce(news("#c", 2, Outcome::Failure));
    assert!(rig.lines_now().is_empty() && rig.outbox.deadline(&anywhere).is_none());
    rig.outbox.set_upstream(true);
    assert_eq!(rig.lines_now().len(), 2, "both are told now");
}

#[test]
fn nothing_goes_where_it_cannot_arrive() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Success));
    let nowhere = |_: &Name| None;
    assert!(rig.outbox.next(rig.now, 0, &nowhere).is_none());
    assert!(rig.outbox.deadline(&nowhere).is_none());
    rig.outbox.forget(&name("#c"));
    assert!(rig.outbox.pending().is_empty());
}

#[test]
fn names_that_the_server_takes_for_one_are_one() {
    let mut rig = Rig::new();
    rig.announce(news("#a[", 1, Outcome::Success));
    rig.outbox.refold(Casemapping::Ascii);
    assert_eq!(rig.outbox.queues.len(), 1);
    rig.announce(news("#A[", 2, Outcome::Success));
    rig.outbox.refold(Casemapping::Rfc1459);
    rig.announce(news("#a{", 3, Outcome::Success));
    assert_eq!(rig.outbox.queues.len(), 1);
}

#[test]
fn a_refusal_that_a_lost_network_leaves_open_silences_nobody() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Failure));
    rig.lines_now();
    rig.refuse("#c");
    rig.outbox.set_upstream(false);
    rig.outbox.set_upstream(true);
    assert_eq!(rig.lines_now().len(), 1);
}

#[test]
fn old_coloured_replies_are_not_said_again() {
    let mut rig = Rig::new();
    for _ in 0..20 {
        rig.reply("#c", &["\u{3}04x\u{f}"]);
        rig.lines_now();
        rig.wait(3600);
        rig.confirm();
    }
    rig.reply("#c", &["plain"]);
    rig.lines_now();
    rig.refuse("#c");
    rig.confirm();
    rig.wait(100_000);
    assert!(rig.lines_now().is_empty());
}

#[test]
fn what_was_sent_before_notify_off_does_not_come_back() {
    let mut rig = Rig::new();
    rig.announce(news("#c", 1, Outcome::Failure));
    rig.lines_now();
    rig.announce(Announcement {
        is_watched: true,
        ..news("#c", 2, Outcome::Failure)
    });
    rig.outbox.keep_announcements(&name("#c"), EventSet::EMPTY);
    rig.outbox.on_disconnected(rig.now);
    let said = rig.lines_now();
    assert!(said.len() == 1 && said[0].contains("b2 #2"), "{said:?}");
}

#[test]
fn what_somebody_waits_for_is_never_only_counted() {
    let mut rig = Rig::new();
    rig.announce(Announcement {
        is_watched: true,
        ..news("#c", 0, Outcome::Success)
    });
    (1..150).for_each(|number| rig.announce(news("#c", number, Outcome::Failure)));
    assert!(rig.lines().iter().any(|line| line.contains("b0 #0")));
}

#[test]
fn a_question_to_the_server_outlives_a_long_reply() {
    let mut rig = Rig::new();
    rig.reply("joe", &["x"; 40]);
    rig.outbox
        .ask_server(&name("joe"), Line::new("WHOIS", &["joe"], None));
    rig.reply("joe", &["help"]);
    assert_eq!(rig.lines(), ["WHOIS joe", "PRIVMSG joe :help"]);
}

/// Two schedulers may start something for one change: both are named alike.
#[test]
fn changes_in_a_summary_stand_for_themselves() {
    let mut rig = Rig::new();
    for (number, outcome) in [
        (1, Outcome::Success),
        (2, Outcome::Failure),
        (3, Outcome::Failure),
        (4, Outcome::Success),
    ] {
        rig.announce(Announcement {
            label: "1a2b on main".into(),
            builder: String::new(),
            ..news("#c", number, outcome)
        });
    }
    let lines = rig.lines();
    let expected = "PRIVMSG #c :meanwhile: failure 1a2b on main, 1a2b on main; success 1a2b on main, 1a2b on main http://m/2";
    assert_eq!(lines, [expected]);
}
