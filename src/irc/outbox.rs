//! What waits to be said, in which order and how fast.
//!
//! Pure. A penalty clock runs ahead of the real one by what each line costs, as servers count it
//! (RFC 1459, section 8.10, and the measured limits of the common ones). Replies come before
//! announcements, targets take turns, and what piles up is told in a summary.

use super::wire::{Line, is_channel, split};
use crate::status::Outcome;
use crate::store::Announcement;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far the clock may be ahead when a line goes: with that line's own cost it stays near the ten
/// seconds that servers allow. Five short lines go at once, then one every two seconds.
const AHEAD: Duration = Duration::from_secs(8);
/// Lines of one reply in a channel; the rest is for private talk.
const CHANNEL_LINES: usize = 10;
/// With so many lines waiting, a target that asks for more gets nothing more yet.
const PATIENCE: usize = 50;
/// Announcements that wait for one target; beyond it the least important are only counted.
const WAITING: usize = 100;
/// From so many on, what waits for a target is told in a summary.
const PILE: usize = 4;
/// Summaries leave room for `and N more`.
const SPARE: usize = 20;

/// The most important first.
const ORDER: [Option<Outcome>; 8] = [
    Some(Outcome::Exception),
    Some(Outcome::Failure),
    Some(Outcome::Warnings),
    Some(Outcome::Retry),
    Some(Outcome::Cancelled),
    Some(Outcome::Skipped),
    Some(Outcome::Success),
    None,
];

fn rank(a: &Announcement) -> usize {
    ORDER.iter().position(|o| *o == a.outcome).unwrap_or(ORDER.len())
}

#[derive(Default)]
struct Queue {
    target: String,
    /// Text, and whether it goes as a NOTICE.
    replies: VecDeque<(String, bool)>,
    news: VecDeque<Announcement>,
    /// How many were dropped for want of room.
    uncounted: usize,
}

/// All that waits.
pub struct Outbox {
    clock: Instant,
    /// The next one's turn is in front.
    queues: VecDeque<Queue>,
    /// Handed to the socket, but the connection has not answered since.
    unconfirmed: VecDeque<(u64, Announcement)>,
    sent: u64,
}

/// How a target can be reached now.
pub struct Route {
    /// Bytes of text that fit into one line.
    pub budget: usize,
    pub notice: bool,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(now: Instant) -> Outbox {
        Outbox { clock: now, queues: VecDeque::new(), unconfirmed: VecDeque::new(), sent: 0 }
    }

    fn queue(&mut self, target: &str) -> &mut Queue {
        let at = self.queues.iter().position(|q| q.target == target).unwrap_or_else(|| {
            self.queues.push_back(Queue { target: target.to_owned(), ..Queue::default() });
            self.queues.len() - 1
        });
        &mut self.queues[at]
    }

    /// Queues a reply, split to the budget; in a channel its first lines and a hint. Returns false
    /// if the target has too much waiting already.
    pub fn reply(&mut self, target: &str, lines: &[String], route: &Route) -> bool {
        let queue = self.queue(target);
        if queue.replies.len() > PATIENCE {
            return false;
        }
        let mut pieces: Vec<&str> = lines.iter().flat_map(|l| split(l, route.budget)).collect();
        let more = match is_channel(target) && pieces.len() > CHANNEL_LINES {
            true => format!("… and {} more, ask in private", pieces.drain(CHANNEL_LINES..).count()),
            false => String::new(),
        };
        pieces.extend(Some(more.as_str()).filter(|m| !m.is_empty()));
        queue.replies.extend(pieces.iter().map(|p| ((*p).to_owned(), route.notice)));
        true
    }

    /// Queues an announcement.
    pub fn announce(&mut self, announcement: Announcement) {
        let queue = self.queue(&announcement.target);
        queue.news.push_back(announcement);
        if queue.news.len() > WAITING {
            let least = (0..queue.news.len()).max_by_key(|&i| (rank(&queue.news[i]), usize::MAX - i));
            queue.news.remove(least.unwrap_or(0));
            queue.uncounted += 1;
        }
    }

    /// Forgets what waits for a target.
    pub fn forget(&mut self, target: &str) {
        self.queues.retain(|q| q.target != target);
        self.unconfirmed.retain(|(_, a)| a.target != target);
    }

    /// A line of so many bytes went over the wire, whoever sent it.
    pub fn charge(&mut self, now: Instant, bytes: usize) {
        let cost = Duration::from_millis((1000 + 10 * bytes as u64).max(2000));
        self.clock = self.clock.max(now) + cost;
    }

    /// When the next line may go, if one waits for a target that `route` can reach.
    pub fn deadline(&self, route: &dyn Fn(&str) -> Option<Route>) -> Option<Instant> {
        let waits = |q: &&Queue| !(q.replies.is_empty() && q.news.is_empty());
        let any = self.queues.iter().filter(waits).any(|q| route(&q.target).is_some());
        any.then(|| self.clock.checked_sub(AHEAD).unwrap_or(self.clock))
    }

    /// The next line, if one waits and the clock allows it. Announcements older than `oldest`
    /// (seconds since the epoch) are told in one line for all.
    pub fn next(&mut self, now: Instant, oldest: i64, route: &dyn Fn(&str) -> Option<Route>) -> Option<Line> {
        if self.clock > now + AHEAD {
            return None;
        }
        let reachable = |q: &Queue| route(&q.target).is_some();
        let at = self
            .queues
            .iter()
            .position(|q| !q.replies.is_empty() && reachable(q))
            .or_else(|| self.queues.iter().position(|q| !q.news.is_empty() && reachable(q)))?;
        let mut queue = self.queues.remove(at)?;
        let target = queue.target.clone();
        let route = route(&target)?;
        let (text, notice) = match queue.replies.pop_front() {
            Some(reply) => reply,
            None => {
                let (text, told) = queue.take(oldest, route.budget);
                self.sent += 1;
                self.unconfirmed.extend(told.into_iter().map(|a| (self.sent, a)));
                (text, route.notice)
            }
        };
        if !(queue.replies.is_empty() && queue.news.is_empty()) {
            self.queues.push_back(queue);
        }
        let line = Line::new(if notice { "NOTICE" } else { "PRIVMSG" }, &[&target], Some(&text));
        self.charge(now, line.bytes().len());
        Some(line)
    }

    /// The number of the last announcement that was sent, if some wait for the connection's answer.
    pub fn unconfirmed(&self) -> Option<u64> {
        self.unconfirmed.back().map(|(number, _)| *number)
    }

    /// Whether nothing waits to be sent at once.
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// The connection has answered after announcement `number`. Returns whether that was news.
    pub fn confirm(&mut self, number: u64) -> bool {
        let before = self.unconfirmed.len();
        self.unconfirmed.retain(|(n, _)| *n > number);
        before != self.unconfirmed.len()
    }

    /// The connection is gone: replies are no use any more, announcements that may not have arrived
    /// will be said again.
    pub fn lost(&mut self, now: Instant) {
        self.clock = now;
        for queue in &mut self.queues {
            queue.replies.clear();
        }
        while let Some((_, announcement)) = self.unconfirmed.pop_back() {
            self.queue(&announcement.target.clone()).news.push_front(announcement);
        }
        self.queues.retain(|q| !q.news.is_empty());
    }

    /// Every announcement whose arrival is not certain.
    pub fn pending(&self) -> Vec<Announcement> {
        let unconfirmed = self.unconfirmed.iter().map(|(_, a)| a);
        unconfirmed.chain(self.queues.iter().flat_map(|q| &q.news)).cloned().collect()
    }
}

impl Queue {
    /// Takes what is to be said next: one announcement, or a summary of several.
    fn take(&mut self, oldest: i64, budget: usize) -> (String, Vec<Announcement>) {
        let (old, fresh): (Vec<_>, Vec<_>) = self.news.drain(..).partition(|a| a.at < oldest);
        if old.len() > 1 || (!old.is_empty() && self.uncounted > 0) {
            self.news.extend(fresh);
            let more = std::mem::take(&mut self.uncounted);
            let (mut text, rest) = summary("missed while away", &old, budget);
            if rest + more > 0 {
                text += &format!(" and {} more", rest + more);
            }
            return (text, old);
        }
        self.news.extend(old.into_iter().chain(fresh));
        if self.news.len() < PILE && self.uncounted == 0 {
            let first: Vec<Announcement> = self.news.drain(..1).collect();
            let text = split(&first[0].text, budget).first().map_or(String::new(), |t| (*t).to_owned());
            return (text, first);
        }
        let mut pile: Vec<Announcement> = self.news.drain(..).collect();
        pile.sort_by_key(rank);
        let (mut text, rest) = summary("meanwhile", &pile, budget);
        let told = pile.drain(..pile.len() - rest).collect();
        self.news.extend(pile);
        if self.news.is_empty() && self.uncounted > 0 {
            text += &format!(" and {} more", std::mem::take(&mut self.uncounted));
        }
        (text, told)
    }
}

/// One line that names as many as fit, by result; and how many are left over. The list is sorted
/// by importance here, so the ones left over are its least important.
fn summary(lead: &str, list: &[Announcement], budget: usize) -> (String, usize) {
    let mut sorted: Vec<&Announcement> = list.iter().collect();
    sorted.sort_by_key(|a| rank(a));
    let mut text = format!("{lead}:");
    for (i, a) in sorted.iter().enumerate() {
        let word = a.outcome.map_or("also", Outcome::word);
        let item = match i > 0 && sorted[i - 1].outcome == a.outcome {
            true => format!(", {}", a.label),
            false if i > 0 => format!("; {word} {}", a.label),
            false => format!(" {word} {}", a.label),
        };
        if i > 0 && text.len() + item.len() + SPARE > budget {
            return (text, sorted.len() - i);
        }
        text += &item;
    }
    (text, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(target: &str, n: usize, outcome: Outcome) -> Announcement {
        let (label, text) = (format!("b{n} #{n}"), format!("b{n} #{n} {} http://m/{n}", outcome.word()));
        Announcement { target: target.into(), at: 100, outcome: Some(outcome), label, text }
    }

    fn route(_: &str) -> Option<Route> {
        Some(Route { budget: 400, notice: false })
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
        let mut outbox = Outbox::new(now);
        let lines: Vec<String> = (0..8).map(|i| format!("line {i}")).collect();
        outbox.reply("joe", &lines, &route("").unwrap());
        let said = drain(&mut outbox, now);
        assert_eq!(said.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 2, 4, 6]);
        assert_eq!(said[7].1, "PRIVMSG joe :line 7");
    }

    #[test]
    fn long_lines_cost_more() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        let lines = vec!["x".repeat(380); 5];
        outbox.reply("joe", &lines, &route("").unwrap());
        let times: Vec<u64> = drain(&mut outbox, now).iter().map(|s| s.0).collect();
        assert_eq!(times, [0, 0, 1, 6, 11]);
    }

    #[test]
    fn replies_first_and_targets_take_turns() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        for n in 1..3 {
            outbox.announce(news("#a", n, Outcome::Success));
            outbox.announce(news("#b", n, Outcome::Success));
        }
        outbox.reply("#c", &["one".into(), "two".into()], &route("").unwrap());
        outbox.reply("joe", &["hi".into()], &Route { budget: 400, notice: true });
        let said: Vec<String> = drain(&mut outbox, now).into_iter().map(|s| s.1[..11].to_owned()).collect();
        assert_eq!(
            said,
            ["PRIVMSG #c ", "NOTICE joe ", "PRIVMSG #c ", "PRIVMSG #a ", "PRIVMSG #b ", "PRIVMSG #a ", "PRIVMSG #b "]
        );
    }

    #[test]
    fn a_long_reply_is_cut_in_a_channel_and_whole_in_private() {
        let now = Instant::now();
        let lines: Vec<String> = (0..30).map(|i| format!("line {i}")).collect();
        let mut outbox = Outbox::new(now);
        outbox.reply("#c", &lines, &route("").unwrap());
        let said = drain(&mut outbox, now);
        assert_eq!((said.len(), said[10].1.as_str()), (11, "PRIVMSG #c :… and 20 more, ask in private"));
        outbox.reply("joe", &lines, &route("").unwrap());
        assert_eq!(drain(&mut outbox, now).len(), 30);
        assert!(outbox.reply("joe", &vec!["x".to_owned(); 60], &route("").unwrap()));
        assert!(!outbox.reply("joe", &lines, &route("").unwrap()), "enough waits for joe");
    }

    #[test]
    fn fifty_builds_at_once_are_all_named_within_ten_seconds_failures_first() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        for n in 0..50 {
            outbox.announce(news("#c", n, if n % 10 == 9 { Outcome::Failure } else { Outcome::Success }));
        }
        let said = drain(&mut outbox, now);
        assert!(said[0].1.starts_with("PRIVMSG #c :meanwhile: failure b9 #9, b19 #19"), "{said:?}");
        assert!(said.last().unwrap().0 <= 10, "{said:?}");
        let all: String = said.iter().map(|s| s.1.clone() + ",").collect();
        assert!((0..50).all(|n| all.contains(&format!(" b{n} #{n}"))), "{said:?}");
        assert_eq!(outbox.pending().len(), 50);
        outbox.confirm(outbox.unconfirmed().unwrap());
        assert!(outbox.pending().is_empty());
    }

    #[test]
    fn beyond_its_size_it_keeps_the_failures_and_counts_the_rest() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        outbox.announce(news("#c", 0, Outcome::Failure));
        (1..150).for_each(|n| outbox.announce(news("#c", n, Outcome::Success)));
        assert_eq!(outbox.pending().len(), WAITING);
        let said = drain(&mut outbox, now);
        assert!(said[0].1.contains("failure b0 #0"));
        assert!(said.last().unwrap().1.ends_with(" and 50 more"), "{said:?}");
    }

    #[test]
    fn what_a_lost_connection_may_have_swallowed_is_said_again() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        (0..3).for_each(|n| outbox.announce(news("#c", n, Outcome::Success)));
        outbox.next(now, 0, &route);
        let first = outbox.unconfirmed().unwrap();
        outbox.next(now, 0, &route);
        outbox.confirm(first);
        outbox.reply("joe", &["stale".into()], &route("").unwrap());
        outbox.lost(now);
        let said: Vec<String> = drain(&mut outbox, now).into_iter().map(|s| s.1).collect();
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("b1 #1") && said[1].contains("b2 #2"));
    }

    #[test]
    fn what_is_too_old_is_one_line() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        (0..90).for_each(|n| outbox.announce(news("#c", n, if n == 50 { Outcome::Failure } else { Outcome::Success })));
        let line = outbox.next(now, 101, &route).unwrap().shown();
        assert!(line.starts_with("PRIVMSG #c :missed while away: failure b50 #50; success b0 #0, "), "{line}");
        assert!(line.ends_with(" more"), "{line}");
        assert!(outbox.is_idle());
    }

    #[test]
    fn nothing_goes_where_it_cannot_arrive() {
        let now = Instant::now();
        let mut outbox = Outbox::new(now);
        outbox.announce(news("#c", 1, Outcome::Success));
        let nowhere = |_: &str| None;
        assert!(outbox.next(now, 0, &nowhere).is_none() && outbox.deadline(&nowhere).is_none());
        outbox.forget("#c");
        assert!(outbox.pending().is_empty());
    }
}
