//! What waits to be said, in which order and how fast. Pure. A penalty clock runs ahead of the real
//! one by what each line costs, as servers count it (RFC 1459, section 8.10, and the measured limits
//! of the common ones). Replies come before announcements, and targets take turns.

use super::wire::{Line, is_channel, plain, split};
use crate::status::Outcome::{
    self, Cancelled, Exception, Failure, Retry, Skipped, Success, Warnings,
};
use crate::store::Announcement;
use crate::text::fitted;
use std::collections::{BTreeSet, VecDeque};
use std::mem::take;
use std::time::{Duration, Instant};

/// How far the clock may be ahead when a line goes: with that line's own cost it stays near the ten
/// seconds that servers allow. Five short lines go at once, then one every two seconds.
const AHEAD: Duration = Duration::from_secs(8);
pub const CHANNEL_LINES: usize = 10; // of one reply; the rest is for private talk
const PATIENCE: (usize, usize) = (50, 20_000); // lines of replies that wait for a target, and for all: no more yet
const REPLIES_AT_ONCE: usize = 5; // then an announcement has its turn
const WAITING: usize = 100; // announcements for one target; beyond it the least important are only counted
const PILE: usize = 4; // from so many announcements on, they are told in a summary
const SPARE: usize = 20; // room that a summary leaves for `and N more`
const ORDER: [Outcome; 7] = [
    Exception, Failure, Warnings, Retry, Cancelled, Skipped, Success,
];

/// The lower, the more important; what has no outcome comes last.
fn rank(a: &Announcement) -> usize {
    ORDER
        .iter()
        .position(|o| Some(*o) == a.outcome)
        .unwrap_or(ORDER.len())
}

#[derive(Default)]
struct Queue {
    target: String,
    replies: VecDeque<Line>,
    news: Vec<Announcement>,
}

/// All that waits.
pub struct Outbox {
    clock: Instant,
    paced: bool,                           // whether the clock counts at all
    queues: VecDeque<Queue>,               // the next one's turn is in front
    unconfirmed: Vec<(u64, Announcement)>, // sent, but the connection has not answered since
    sent: u64,
    replied: usize, // lines that an announcement has had to wait for
}

/// How a target can be reached now.
pub struct Route {
    pub budget: usize, // bytes of text that fit into one line
    pub notice: bool,
}

impl Route {
    fn line(&self, target: &str, text: &str) -> Line {
        Line::new(
            if self.notice { "NOTICE" } else { "PRIVMSG" },
            &[target],
            Some(text),
        )
    }
}

impl Outbox {
    pub fn new(now: Instant, paced: bool) -> Outbox {
        Outbox {
            clock: now,
            paced,
            queues: VecDeque::new(),
            unconfirmed: Vec::new(),
            sent: 0,
            replied: 0,
        }
    }

    fn queue(&mut self, target: &str) -> &mut Queue {
        let at = self
            .queues
            .iter()
            .position(|q| q.target == target)
            .unwrap_or_else(|| {
                self.queues.push_back(Queue {
                    target: target.to_owned(),
                    ..Queue::default()
                });
                self.queues.len() - 1
            });
        &mut self.queues[at]
    }

    /// Whether a reply to this target would still be taken.
    pub fn takes(&self, target: &str) -> bool {
        let here = self
            .queues
            .iter()
            .find(|q| q.target == target)
            .map_or(0, |q| q.replies.len());
        here <= PATIENCE.0
            && self.queues.iter().map(|q| q.replies.len()).sum::<usize>() <= PATIENCE.1
    }

    /// Queues a reply, split to the budget; in a channel its first lines and a hint. There are so many
    /// `more` lines than these.
    pub fn reply(&mut self, target: &str, lines: &[String], more: usize, route: &Route) {
        if !self.takes(target) {
            return log!(
                Warning,
                "{target}: too much waits to be said there, not answering"
            );
        }
        let pieces: Vec<&str> = lines.iter().flat_map(|l| split(l, route.budget)).collect();
        let shown = if is_channel(target) {
            pieces.len().min(CHANNEL_LINES)
        } else {
            pieces.len()
        };
        let more = pieces.len() - shown + more;
        let hint = format!("… and {more} more, ask in private");
        let hint = Some(hint.as_str()).filter(|_| more > 0);
        let said = pieces[..shown].iter().copied().chain(hint);
        self.queue(target)
            .replies
            .extend(said.map(|text| route.line(target, text)));
    }

    /// Queues a line to the server among the replies to a target, as the next.
    pub fn ask(&mut self, target: &str, line: Line) {
        self.queue(target).replies.push_front(line);
    }

    pub fn announce(&mut self, announcement: Announcement) {
        let news = &mut self.queue(&announcement.target).news;
        news.push(announcement);
        // Beyond its size, only the number of the least important ones is kept.
        let named: Vec<usize> = (0..news.len())
            .rev()
            .filter(|&i| news[i].more == 0)
            .collect();
        if let (Some(least), true) = (
            named.iter().copied().max_by_key(|&i| rank(&news[i])),
            named.len() > WAITING,
        ) {
            let least = news.remove(least);
            match news.iter_mut().find(|a| a.more > 0) {
                Some(counted) => (counted.more, counted.at) = (counted.more + 1, least.at),
                None => news.push(Announcement {
                    more: 1,
                    outcome: None,
                    label: String::new(),
                    text: String::new(),
                    ..least
                }),
            }
        }
    }

    /// Forgets what waits for a target.
    pub fn forget(&mut self, target: &str) {
        self.queues.retain(|q| q.target != target);
        self.unconfirmed.retain(|(_, a)| a.target != target);
    }

    /// A line of so many bytes went over the wire, whoever sent it.
    pub fn charge(&mut self, now: Instant, bytes: usize) {
        if !self.paced {
            return;
        }
        let cost = Duration::from_millis((1000 + 10 * bytes as u64).max(2000));
        // What goes at once must not silence us for long, however much of it a server provokes.
        self.clock = (self.clock.max(now) + cost).min(now + 4 * AHEAD);
    }

    /// When the next line may go, if one waits for a target that `route` can reach.
    pub fn deadline(&self, route: &dyn Fn(&str) -> Option<Route>) -> Option<Instant> {
        let waits = self
            .queues
            .iter()
            .any(|q| q.waits() && route(&q.target).is_some());
        waits.then(|| self.clock.checked_sub(AHEAD).unwrap_or(self.clock))
    }

    /// The next line, if one waits and the clock allows it. Announcements older than `oldest`
    /// (seconds since the epoch) are told in one line for all.
    pub fn next(
        &mut self,
        now: Instant,
        oldest: i64,
        route: &dyn Fn(&str) -> Option<Route>,
    ) -> Option<Line> {
        if self.clock > now + AHEAD {
            return None;
        }
        let first = |has: fn(&Queue) -> bool| {
            self.queues
                .iter()
                .position(|q| has(q) && route(&q.target).is_some())
        };
        let (reply, waiting) = (
            first(|q| !q.replies.is_empty()),
            first(|q| !q.news.is_empty()),
        );
        let news = waiting.filter(|_| reply.is_none() || self.replied >= REPLIES_AT_ONCE);
        let mut queue = self.queues.remove(news.or(reply)?)?;
        let line = match news {
            Some(_) => {
                let route = route(&queue.target)?;
                let (text, told) = queue.take(
                    oldest,
                    route.budget,
                    if self.paced { PILE } else { usize::MAX },
                );
                (self.replied, self.sent) = (0, self.sent + 1);
                self.unconfirmed
                    .extend(told.into_iter().map(|a| (self.sent, a)));
                route.line(&queue.target, &text)
            }
            None => {
                self.replied = waiting.map_or(0, |_| self.replied + 1);
                queue.replies.pop_front()?
            }
        };
        self.queues.extend(Some(queue).filter(Queue::waits));
        self.charge(now, line.bytes().len());
        Some(line)
    }

    /// The number of the last announcement that was sent, if some wait for the connection's answer.
    pub fn unconfirmed(&self) -> Option<u64> {
        self.unconfirmed.last().map(|(number, _)| *number)
    }

    /// Whether nothing waits to be sent at once.
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// The connection has answered after announcement `number`. Returns whether that was news.
    pub fn confirm(&mut self, number: u64) -> bool {
        self.unconfirmed
            .extract_if(.., |(n, _)| *n <= number)
            .count()
            > 0
    }

    /// The connection is gone: replies are no use any more, announcements that may not have arrived
    /// will be said again.
    pub fn lost(&mut self, now: Instant) {
        self.clock = now;
        self.queues.iter_mut().for_each(|q| q.replies.clear());
        for (_, announcement) in take(&mut self.unconfirmed).into_iter().rev() {
            self.queue(&announcement.target)
                .news
                .insert(0, announcement);
        }
        self.queues.retain(Queue::waits);
    }

    /// The server has not passed on what was last said to a target. Announcements will be said again:
    /// those with colours at once and without, because some channels take none; or else, it returns
    /// true, later.
    pub fn unheard(&mut self, target: &str) -> bool {
        let colored = |a: &Announcement| a.target == target && a.text.contains('\u{3}');
        let first = self.unconfirmed.iter().any(|(_, a)| colored(a));
        let refused = |a: &Announcement| {
            if first {
                colored(a)
            } else {
                a.target == target
            }
        };
        let unheard: Vec<_> = self
            .unconfirmed
            .extract_if(.., |(_, a)| refused(a))
            .collect();
        let later = !first && !unheard.is_empty();
        self.queue(target).replies.clear();
        for (_, announcement) in unheard.into_iter().rev() {
            let announcement = Announcement {
                text: plain(&announcement.text),
                ..announcement
            };
            self.queue(target).news.insert(0, announcement);
        }
        self.queues.retain(Queue::waits);
        later
    }

    /// Every announcement whose arrival is not certain.
    pub fn pending(&self) -> Vec<Announcement> {
        let unconfirmed = self.unconfirmed.iter().map(|(_, a)| a);
        unconfirmed
            .chain(self.queues.iter().flat_map(|q| &q.news))
            .cloned()
            .collect()
    }
}

impl Queue {
    fn waits(&self) -> bool {
        !(self.replies.is_empty() && self.news.is_empty())
    }

    /// Takes what is to be said next: one announcement, or a summary of several.
    fn take(
        &mut self,
        oldest: i64,
        budget: usize,
        pile_size: usize,
    ) -> (String, Vec<Announcement>) {
        let missed = self.news.iter().filter(|a| a.at < oldest).count() > 1;
        let mut pile: Vec<Announcement> = self
            .news
            .extract_if(.., |a| !missed || a.at < oldest)
            .collect();
        if !missed && pile.len() < pile_size && pile.iter().all(|a| a.more == 0) {
            self.news = pile.split_off(1);
            return (fitted(&pile[0].text, budget), pile);
        }
        // Whoever hears of the end need not hear of the start.
        let ended: BTreeSet<String> = pile
            .iter()
            .map(|a| format!("{} started", a.label))
            .collect();
        pile.retain(|a| !ended.contains(&a.label));
        let counted: Vec<Announcement> = pile.extract_if(.., |a| a.more > 0).collect();
        pile.sort_by_key(rank);
        // One line that names as many as fit, by result.
        let mut text = String::from(if missed {
            "missed while away:"
        } else {
            "meanwhile:"
        });
        let mut told = 0;
        for (i, a) in pile.iter().enumerate() {
            let item = match a.outcome.map_or("also", Outcome::word) {
                word if i == 0 => format!(" {word} {}", a.label),
                _ if pile[i - 1].outcome == a.outcome => format!(", {}", a.label),
                word => format!("; {word} {}", a.label),
            };
            if i > 0 && text.len() + item.len() + SPARE > budget {
                break;
            }
            text += &item;
            told = i + 1;
        }
        // What was missed is told once, even if only its number is.
        if !missed {
            self.news = pile.split_off(told);
        }
        let mut more = pile.len() - told;
        if missed || self.news.is_empty() {
            more += counted.iter().map(|a| a.more).sum::<usize>();
            pile.extend(counted);
        } else {
            self.news.extend(counted);
        }
        if more > 0 {
            text += &format!(" and {more} more");
        }
        (text, pile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(target: &str, n: usize, outcome: Outcome) -> Announcement {
        let (label, text) = (
            format!("b{n} #{n}"),
            format!("b{n} #{n} {} http://m/{n}", outcome.word()),
        );
        Announcement {
            target: target.into(),
            at: 100,
            outcome: Some(outcome),
            label,
            text,
            more: 0,
        }
    }

    fn route(_: &str) -> Option<Route> {
        Some(Route {
            budget: 400,
            notice: false,
        })
    }

    /// Everything that is said until nothing waits, with the second at which it is said.
    fn drain(outbox: &mut Outbox, start: Instant) -> Vec<(u64, String)> {
        let mut said = Vec::new();
        let mut now = start;
        while let Some(at) = outbox.deadline(&route) {
            now = now.max(at);
            while let Some(line) = outbox.next(now, 0, &route) {
                said.push(((now - start).as_secs(), line.shown()));
            }
        }
        said
    }

    #[test]
    fn a_burst_then_one_line_every_two_seconds() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        let lines: Vec<String> = (0..8).map(|i| format!("line {i}")).collect();
        outbox.reply("joe", &lines, 0, &route("").unwrap());
        let said = drain(&mut outbox, now);
        assert_eq!(
            said.iter().map(|s| s.0).collect::<Vec<_>>(),
            [0, 0, 0, 0, 0, 2, 4, 6]
        );
        assert_eq!(said[7].1, "PRIVMSG joe :line 7");
    }

    #[test]
    fn long_lines_cost_more() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        let lines = vec!["x".repeat(380); 5];
        outbox.reply("joe", &lines, 0, &route("").unwrap());
        let times: Vec<u64> = drain(&mut outbox, now).iter().map(|s| s.0).collect();
        assert_eq!(times, [0, 0, 1, 6, 11]);
    }

    #[test]
    fn replies_first_and_targets_take_turns() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        for n in 1..3 {
            outbox.announce(news("#a", n, Outcome::Success));
            outbox.announce(news("#b", n, Outcome::Success));
        }
        outbox.reply("#c", &["one".into(), "two".into()], 0, &route("").unwrap());
        outbox.reply(
            "joe",
            &["hi".into()],
            0,
            &Route {
                budget: 400,
                notice: true,
            },
        );
        let said: Vec<String> = drain(&mut outbox, now)
            .into_iter()
            .map(|s| s.1[..11].to_owned())
            .collect();
        assert_eq!(
            said,
            [
                "PRIVMSG #c ",
                "NOTICE joe ",
                "PRIVMSG #c ",
                "PRIVMSG #a ",
                "PRIVMSG #b ",
                "PRIVMSG #a ",
                "PRIVMSG #b "
            ]
        );
    }

    #[test]
    fn long_talk_does_not_keep_news_back() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        outbox.reply("joe", &vec!["line".to_owned(); 20], 0, &route("").unwrap());
        outbox.announce(news("#c", 1, Outcome::Failure));
        let said = drain(&mut outbox, now);
        assert_eq!(
            said.iter().position(|s| s.1.contains("b1 #1")),
            Some(REPLIES_AT_ONCE)
        );
    }

    #[test]
    fn what_a_server_provokes_does_not_silence_for_long() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        (0..1000).for_each(|_| outbox.charge(now, 20));
        outbox.announce(news("#c", 1, Outcome::Failure));
        assert_eq!(drain(&mut outbox, now)[0].0, 24);
    }

    #[test]
    fn a_long_reply_is_cut_in_a_channel_and_whole_in_private() {
        let now = Instant::now();
        let lines: Vec<String> = (0..30).map(|i| format!("line {i}")).collect();
        let mut outbox = Outbox::new(now, true);
        outbox.reply("#c", &lines, 0, &route("").unwrap());
        let said = drain(&mut outbox, now);
        assert_eq!(
            (said.len(), said[10].1.as_str()),
            (11, "PRIVMSG #c :… and 20 more, ask in private")
        );
        outbox.reply("joe", &lines, 0, &route("").unwrap());
        assert_eq!(drain(&mut outbox, now).len(), 30);
        outbox.reply("joe", &vec!["x".to_owned(); 60], 0, &route("").unwrap());
        assert!(
            !outbox.takes("joe") && outbox.takes("#c"),
            "enough waits for joe"
        );
        outbox.reply("joe", &lines, 0, &route("").unwrap());
        assert_eq!(drain(&mut outbox, now).len(), 60);
    }

    #[test]
    fn fifty_builds_at_once_are_all_named_within_ten_seconds_failures_first() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        for n in 0..50 {
            outbox.announce(news(
                "#c",
                n,
                if n % 10 == 9 {
                    Outcome::Failure
                } else {
                    Outcome::Success
                },
            ));
        }
        let said = drain(&mut outbox, now);
        assert!(
            said[0]
                .1
                .starts_with("PRIVMSG #c :meanwhile: failure b9 #9, b19 #19"),
            "{said:?}"
        );
        assert!(said.last().unwrap().0 <= 10, "{said:?}");
        let all: String = said.iter().map(|s| s.1.clone() + ",").collect();
        assert!(
            (0..50).all(|n| all.contains(&format!(" b{n} #{n}"))),
            "{said:?}"
        );
        assert_eq!(outbox.pending().len(), 50);
        outbox.confirm(outbox.unconfirmed().unwrap());
        assert!(outbox.pending().is_empty());
    }

    #[test]
    fn beyond_its_size_it_keeps_the_failures_and_counts_the_rest() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        outbox.announce(news("#c", 0, Outcome::Failure));
        (1..150).for_each(|n| outbox.announce(news("#c", n, Outcome::Success)));
        assert_eq!(outbox.pending().len(), WAITING + 1);
        // What is only counted outlives a restart, and a lost connection.
        let mut again = Outbox::new(now, true);
        outbox.pending().into_iter().for_each(|a| again.announce(a));
        assert!(
            drain(&mut again, now)
                .last()
                .unwrap()
                .1
                .ends_with(" and 50 more")
        );
        again.lost(now);
        assert!(
            drain(&mut again, now)
                .last()
                .unwrap()
                .1
                .ends_with(" and 50 more")
        );
        let said = drain(&mut outbox, now);
        assert!(said[0].1.contains("failure b0 #0"), "{said:?}");
        assert!(said.last().unwrap().1.ends_with(" and 50 more"), "{said:?}");
    }

    #[test]
    fn a_summary_tells_of_a_start_only_while_the_end_is_not_known() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        for n in 0..4 {
            let label = format!("b{n} #{n} started");
            outbox.announce(Announcement {
                outcome: None,
                label,
                ..news("#c", n, Outcome::Success)
            });
        }
        (0..3).for_each(|n| outbox.announce(news("#c", n, Outcome::Success)));
        let said = drain(&mut outbox, now);
        let line = "PRIVMSG #c :meanwhile: success b0 #0, b1 #1, b2 #2; also b3 #3 started";
        assert_eq!(
            said.iter().map(|s| s.1.as_str()).collect::<Vec<_>>(),
            [line]
        );
    }

    #[test]
    fn what_a_lost_connection_may_have_swallowed_is_said_again() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        (0..3).for_each(|n| outbox.announce(news("#c", n, Outcome::Success)));
        outbox.next(now, 0, &route);
        let first = outbox.unconfirmed().unwrap();
        outbox.next(now, 0, &route);
        outbox.confirm(first);
        outbox.reply("joe", &["stale".into()], 0, &route("").unwrap());
        outbox.lost(now);
        let said: Vec<String> = drain(&mut outbox, now).into_iter().map(|s| s.1).collect();
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("b1 #1") && said[1].contains("b2 #2"));
    }

    #[test]
    fn what_the_server_did_not_pass_on_is_said_again() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        outbox.announce(news("#c", 1, Outcome::Success));
        let text = "b2 #2 \u{3}04failure\u{f}".into();
        outbox.announce(Announcement {
            text,
            ..news("#d", 2, Outcome::Failure)
        });
        let said = drain(&mut outbox, now).len();
        outbox.reply("#d", &["of no use any more".into()], 0, &route("").unwrap());
        assert!(!outbox.unheard("#d"), "perhaps it is the colours");
        outbox.confirm(outbox.unconfirmed().unwrap());
        let again = |outbox: &mut Outbox| {
            drain(outbox, now)
                .into_iter()
                .map(|s| s.1)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (said, again(&mut outbox)),
            (2, vec!["PRIVMSG #d :b2 #2 failure".to_owned()])
        );
        assert!(outbox.unheard("#d"), "it was not");
        assert_eq!(again(&mut outbox), ["PRIVMSG #d :b2 #2 failure"]);
        outbox.confirm(outbox.unconfirmed().unwrap());
        assert!(
            !outbox.unheard("#d") && outbox.is_idle(),
            "that was a reply"
        );
    }

    #[test]
    fn what_was_passed_on_before_the_colours_is_not_said_again() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        outbox.announce(news("#d", 1, Outcome::Success));
        let text = "b2 #2 \u{3}04failure\u{f}".into();
        outbox.announce(Announcement {
            text,
            ..news("#d", 2, Outcome::Failure)
        });
        drain(&mut outbox, now);
        outbox.unheard("#d");
        outbox.confirm(2);
        let again: Vec<String> = drain(&mut outbox, now).into_iter().map(|s| s.1).collect();
        assert_eq!(again, ["PRIVMSG #d :b2 #2 failure"]);
    }

    #[test]
    fn a_question_to_the_server_does_not_wait_for_a_long_reply() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        outbox.reply("joe", &vec!["x".to_owned(); 40], 0, &route("").unwrap());
        outbox.ask("joe", Line::new("WHOIS", &["joe"], None));
        assert_eq!(outbox.next(now, 0, &route).unwrap().shown(), "WHOIS joe");
    }

    #[test]
    fn what_is_too_old_is_one_line() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        (0..90).for_each(|n| {
            outbox.announce(news(
                "#c",
                n,
                if n == 50 {
                    Outcome::Failure
                } else {
                    Outcome::Success
                },
            ))
        });
        let line = outbox.next(now, 101, &route).unwrap().shown();
        assert!(
            line.starts_with("PRIVMSG #c :missed while away: failure b50 #50; success b0 #0, "),
            "{line}"
        );
        assert!(line.ends_with(" more"), "{line}");
        assert!(outbox.is_idle());
    }

    #[test]
    fn without_pacing_everything_goes_at_once() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, false);
        (0..90).for_each(|n| outbox.announce(news("#c", n, Outcome::Success)));
        outbox.reply("#d", &vec!["x".to_owned(); 3], 2, &route("").unwrap());
        let said = drain(&mut outbox, now);
        assert!(
            said.len() == 94 && said.iter().all(|s| s.0 == 0),
            "{said:?}"
        );
        assert!(
            said.iter()
                .any(|s| s.1 == "PRIVMSG #d :… and 2 more, ask in private"),
            "{said:?}"
        );
    }

    #[test]
    fn nothing_goes_where_it_cannot_arrive() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now, true);
        outbox.announce(news("#c", 1, Outcome::Success));
        let nowhere = |_: &str| None;
        assert!(outbox.next(now, 0, &nowhere).is_none() && outbox.deadline(&nowhere).is_none());
        outbox.forget("#c");
        assert!(outbox.pending().is_empty());
    }
}
