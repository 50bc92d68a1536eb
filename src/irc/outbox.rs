//! What waits to be said, in which order, whether it has arrived, and whether each target can be
//! reached. Pure.
//!
//! An announcement is delivered when its line was handed to the socket, the connection has answered
//! a question since, and the server has not refused it. Channels come before people, replies before
//! announcements, and each leaves the other a share; targets take turns.

use super::Refusal;
use super::pacing::{PenaltyClock, Software};
use super::wire::{Line, split};
use crate::backoff::Backoff;
use crate::names::{Casemapping, Name};
use crate::notify_events::EventSet;
use crate::outcome::Outcome;
use crate::sanitize::strip_formatting;
use crate::state_file::Announcement;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Lines of one reply in a channel; the rest is for private talk.
pub const CHANNEL_LINES: usize = 10;
/// Lines of replies that wait for one channel, and for all people; beyond it questions are ignored.
const REPLIES_PER_CHANNEL: usize = 50;
const REPLIES_TO_PEOPLE: usize = 20_000;
/// CTCP answers that wait for one person.
const CTCP_REPLIES: usize = 3;
/// A reply of more lines than this to a person gives way to their next question.
const LONG_REPLY: usize = 10;
/// Replies in a row, then an announcement has its turn.
const REPLIES_IN_A_ROW: usize = 5;
/// Lines to channels in a row, then a person has their turn.
const CHANNEL_LINES_IN_A_ROW: usize = 2;
/// Announcements for one target; beyond it the least important are only counted.
const ANNOUNCEMENTS: usize = 100;
/// From so many announcements on, they are told in a summary.
const SUMMARY_THRESHOLD: usize = 4;
/// Bytes that a summary leaves for `and N more`.
const OMITTED_ROOM: usize = 20;
/// A channel that refuses us is tried again then, doubling; and a person, who may be gone.
const CHANNEL_RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
const PERSON_RETRY: (Duration, Duration) = (Duration::from_secs(900), Duration::from_secs(86_400));
/// A line that was refused so often, and now once more though others arrive, is given up.
const REFUSALS: u32 = 2;
/// Refusals in a row after which a person counts as gone.
const PERSON_TRIES: u32 = 8;
/// When it was too much at once.
const RATE_RETRY: Duration = Duration::from_secs(60);
/// Unconfirmed lines; beyond it the oldest replies are forgotten.
const OPEN_LINES: usize = 500;

/// How lines to a target look now.
pub struct Route {
    /// Bytes of text that fit into one line.
    pub budget: usize,
    pub is_notice: bool,
    /// Announcements are held back, but for those that somebody waits for.
    pub is_muted: bool,
}

impl Route {
    fn line(&self, target: &Name, text: &str) -> Line {
        text_line(target, text, self.is_notice)
    }
}

fn text_line(target: &Name, text: &str, is_notice: bool) -> Line {
    let command = if is_notice { "NOTICE" } else { "PRIVMSG" };
    Line::new(command, &[target.as_str()], Some(text))
}

/// Finds the route to a target, if it can be reached now.
pub type Router<'a> = dyn Fn(&Name) -> Option<Route> + 'a;

/// One line of a reply.
#[derive(Clone, Debug)]
enum Reply {
    Text {
        text: String,
        is_notice: bool,
    },
    /// A question to the server, in its turn.
    Raw(Line),
}

/// What waits for one target.
#[derive(Debug)]
struct Queue {
    target: Name,
    replies: VecDeque<Reply>,
    announcements: Vec<Announcement>,
}

/// A line that was handed to the socket, and whose fate is open.
#[derive(Debug)]
struct Sent {
    number: u64,
    target: Name,
    content: Content,
}

impl Sent {
    /// Whether something in it was refused before.
    fn was_refused(&self) -> bool {
        match &self.content {
            Content::Announcements { announcements, .. } => {
                announcements.iter().any(|a| a.refusals > 0)
            }
            Content::Reply { .. } => false,
        }
    }

    fn announcements_mut(&mut self) -> &mut [Announcement] {
        match &mut self.content {
            Content::Announcements { announcements, .. } => announcements,
            Content::Reply { .. } => &mut [],
        }
    }
}

/// The one announcement of these lines, if it was refused often enough before.
fn unspeakable(lines: &[Sent]) -> Option<&Announcement> {
    let [line] = lines else {
        return None;
    };
    match &line.content {
        Content::Announcements { announcements, .. } => match &announcements[..] {
            [only] => Some(only).filter(|only| only.refusals >= REFUSALS),
            _ => None,
        },
        Content::Reply { .. } => None,
    }
}

#[derive(Debug)]
enum Content {
    Announcements {
        announcements: Vec<Announcement>,
        has_colors: bool,
    },
    Reply {
        text: String,
        is_notice: bool,
    },
}

impl Content {
    fn has_colors(&self) -> bool {
        match self {
            Content::Announcements { has_colors, .. } => *has_colors,
            Content::Reply { text, .. } => is_colored(text),
        }
    }
}

fn is_colored(text: &str) -> bool {
    text.contains('\u{3}')
}

/// A `+c` channel refuses lines with colours, until the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colors {
    Taken,
    /// A line with colours was refused: perhaps for these.
    OnTrial,
    Refused,
}

/// Refusals that are not settled yet.
#[derive(Debug, Default)]
struct Refused {
    lines: usize,
    /// It was too much at once.
    is_rate: bool,
    /// There is nobody by that nick.
    is_gone: bool,
}

/// Whether a target can be reached, as far as the server's refusals tell.
#[derive(Debug)]
struct Reachability {
    colors: Colors,
    /// Of lines whose fate is open; while there are any, nothing more is sent.
    refused: Refused,
    /// Something that was refused waits: one line at a time, until it is said or given up.
    is_careful: bool,
    /// Something was delivered since the last refusal.
    was_heard: bool,
    /// It takes some lines and refuses others, for what is in them.
    takes_some: bool,
    /// Nothing that was refused is tried before, and what is new only if that may help.
    refused_until: Option<Instant>,
    /// It was too much at once: nothing at all is tried before.
    is_throttled: bool,
    backoff: Backoff,
    /// As it was logged last.
    reason: String,
}

impl Reachability {
    fn new(target: &Name) -> Reachability {
        let (first, limit) = if target.is_channel() {
            CHANNEL_RETRY
        } else {
            PERSON_RETRY
        };
        Reachability {
            colors: Colors::Taken,
            refused: Refused::default(),
            is_careful: false,
            was_heard: false,
            takes_some: false,
            refused_until: None,
            is_throttled: false,
            backoff: Backoff::new(first, limit),
            reason: String::new(),
        }
    }

    /// Something has arrived; `has_refused`: of what was refused before, some still waits.
    fn on_delivered(&mut self, target: &Name, has_refused: bool) {
        if self.colors == Colors::OnTrial {
            log!(Info, "IRC: {target} takes no colours");
            self.colors = Colors::Refused;
        }
        self.backoff.reset();
        self.refused_until = None;
        self.was_heard = true;
        self.is_careful = has_refused;
        self.takes_some &= has_refused;
    }
}

fn reachability_of<'a>(
    known: &'a mut BTreeMap<Name, Reachability>,
    target: &Name,
) -> &'a mut Reachability {
    let new = || Reachability::new(target);
    known.entry(target.clone()).or_insert_with(new)
}

/// What may be tried at a target now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    Nothing,
    /// What was not refused yet.
    New,
    All,
}

/// What an answer to our question tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Confirmation {
    /// Who was told of something.
    pub told: Vec<Name>,
    /// People who could not be told, and perhaps never will.
    pub unreachable: Vec<Name>,
}

/// All that waits.
pub struct Outbox {
    clock: PenaltyClock,
    /// The next one's turn is in front.
    queues: VecDeque<Queue>,
    sent: VecDeque<Sent>,
    last_number: u64,
    reachability: BTreeMap<Name, Reachability>,
    /// A bouncer without its network takes lines and drops them.
    has_upstream: bool,
    /// Replies since the last announcement, while one waits.
    replies_in_a_row: usize,
    /// Lines to channels since the last one to a person, while one waits.
    channel_lines_in_a_row: usize,
}

impl Outbox {
    pub fn new(is_paced: bool, now: Instant) -> Outbox {
        Outbox {
            clock: PenaltyClock::new(is_paced, now),
            queues: VecDeque::new(),
            sent: VecDeque::new(),
            last_number: 0,
            reachability: BTreeMap::new(),
            has_upstream: true,
            replies_in_a_row: 0,
            channel_lines_in_a_row: 0,
        }
    }

    pub fn set_software(&mut self, software: Software) {
        self.clock.set_software(software);
    }

    /// The server's way to compare names has become known: queues of one name become one.
    pub fn refold(&mut self, casemapping: Casemapping) {
        for queue in std::mem::take(&mut self.queues) {
            let target = queue.target.refold(casemapping);
            let own = self.queue(&target);
            own.replies.extend(queue.replies);
            own.announcements.extend(queue.announcements);
        }
        for sent in &mut self.sent {
            sent.target = sent.target.refold(casemapping);
        }
        self.reachability.clear();
    }

    fn find(&self, target: &Name) -> Option<&Queue> {
        self.queues.iter().find(|queue| queue.target == *target)
    }

    fn queue(&mut self, target: &Name) -> &mut Queue {
        let found = self.queues.iter().position(|queue| queue.target == *target);
        let position = found.unwrap_or_else(|| {
            self.queues.push_back(Queue {
                target: target.clone(),
                replies: VecDeque::new(),
                announcements: Vec::new(),
            });
            self.queues.len() - 1
        });
        &mut self.queues[position]
    }

    // Putting in

    /// Whether a reply to this target would still be taken.
    pub fn takes_reply(&self, target: &Name) -> bool {
        if target.is_channel() {
            let waiting = self.find(target).map_or(0, |queue| queue.replies.len());
            return waiting <= REPLIES_PER_CHANNEL;
        }
        // A person's next question ends a long reply; a crowd of people has no more than this.
        let people = self
            .queues
            .iter()
            .filter(|queue| !queue.target.is_channel());
        let waiting: usize = people.map(|queue| queue.replies.len()).sum();
        waiting <= REPLIES_TO_PEOPLE
    }

    /// Queues a reply, split to the budget; in a channel its first lines and a hint. There are so
    /// many lines more than these.
    pub fn reply(&mut self, target: &Name, lines: &[String], omitted: usize, route: &Route) {
        let pieces: Vec<&str> = lines
            .iter()
            .flat_map(|line| split(line, route.budget))
            .collect();
        let shown = if target.is_channel() {
            pieces.len().min(CHANNEL_LINES)
        } else {
            pieces.len()
        };
        let omitted = pieces.len() - shown + omitted;
        let mut said: Vec<String> = pieces[..shown].iter().map(|s| (*s).to_owned()).collect();
        if omitted > 0 {
            said.push(omission(omitted));
        }
        self.push_replies(target, said, route.is_notice);
    }

    /// Queues items behind a heading, on as few lines as they need; in a channel the first lines
    /// of them and a hint. There are so many items more than these.
    pub fn reply_list(
        &mut self,
        target: &Name,
        heading: &str,
        items: &[String],
        omitted: usize,
        route: &Route,
    ) {
        let limit = if target.is_channel() {
            CHANNEL_LINES
        } else {
            usize::MAX
        };
        let mut lines = Vec::new();
        let mut line = format!("{heading}:");
        let mut shown = 0;
        for item in items {
            let is_last = shown + 1 == items.len();
            let comma = if is_last { "" } else { "," };
            if line.len() + item.len() + 2 > route.budget {
                if lines.len() + 1 >= limit {
                    break;
                }
                lines.push(std::mem::take(&mut line));
            } else {
                line.push(' ');
            }
            line.push_str(item);
            line.push_str(comma);
            shown += 1;
            // An item may be longer than a line.
            if line.len() > route.budget
                && let [whole @ .., last] = &split(&line, route.budget)[..]
            {
                lines.extend(whole.iter().map(|piece| (*piece).to_owned()));
                line = (*last).to_owned();
            }
        }
        lines.push(line);
        let omitted = items.len() - shown + omitted;
        if omitted > 0 {
            lines.push(omission(omitted));
        }
        self.push_replies(target, lines, route.is_notice);
    }

    fn push_replies(&mut self, target: &Name, lines: Vec<String>, is_notice: bool) {
        let queue = self.queue(target);
        if !target.is_channel() && queue.replies.len() > LONG_REPLY {
            queue.drop_replies();
        }
        for text in lines {
            queue.replies.push_back(Reply::Text { text, is_notice });
        }
    }

    /// Queues the answer to a CTCP, unless enough wait for that person.
    pub fn reply_ctcp(&mut self, target: &Name, text: String) {
        let queue = self.queue(target);
        if queue.replies.len() < CTCP_REPLIES {
            let is_notice = true;
            queue.replies.push_back(Reply::Text { text, is_notice });
        }
    }

    /// Queues a question to the server, as the next of what waits for a target.
    pub fn ask_server(&mut self, target: &Name, line: Line) {
        let queue = self.queue(target);
        queue.replies.push_front(Reply::Raw(line));
    }

    pub fn announce(&mut self, target: &Name, announcement: Announcement) {
        let announcements = &mut self.queue(target).announcements;
        announcements.push(announcement);
        drop_least_important(announcements);
    }

    /// Forgets what waits for a target.
    pub fn forget(&mut self, target: &Name) {
        self.queues.retain(|queue| queue.target != *target);
        self.sent.retain(|sent| sent.target != *target);
        self.reachability.remove(target);
    }

    /// A target wants to hear of these events only: what else waits for it is forgotten, but for
    /// what somebody there waits for.
    pub fn keep_announcements(&mut self, target: &Name, wanted: EventSet) {
        let is_wanted = |a: &Announcement| {
            let is_of_these = a.events.is_empty() || a.events.intersects(wanted);
            a.is_watched || !wanted.is_empty() && is_of_these
        };
        self.queue(target).announcements.retain(is_wanted);
        for sent in self.sent.iter_mut().filter(|sent| sent.target == *target) {
            if let Content::Announcements { announcements, .. } = &mut sent.content {
                announcements.retain(is_wanted);
            }
        }
        self.drop_empty_queues();
    }

    /// What waits for a target now happened while it was muted.
    pub fn mark_muted(&mut self, target: &Name) {
        for announcement in &mut self.queue(target).announcements {
            announcement.was_muted = !announcement.is_watched;
        }
        self.drop_empty_queues();
    }

    fn drop_empty_queues(&mut self) {
        self.queues.retain(Queue::has_waiting);
    }

    // Taking out

    /// A line of so many bytes goes over the wire, whoever has sent it.
    pub fn charge(&mut self, bytes: usize, now: Instant) {
        self.clock.charge(bytes, now);
    }

    /// When the next line may go, if one waits for a target that can be reached.
    pub fn deadline(&self, router: &Router) -> Option<Instant> {
        let may_go = |queue: &&Queue| {
            let permission = self.permission(&queue.target);
            queue.has(true, permission, router) || queue.has(false, permission, router)
        };
        let ready_at = |queue: &Queue| {
            if queue.target.is_channel() {
                self.clock.ready_at()
            } else {
                self.clock.ready_for_person_at()
            }
        };
        let waiting = self.queues.iter().filter(|_| self.has_upstream);
        let ready = waiting.filter(may_go).map(ready_at);
        let refused = self
            .reachability
            .iter()
            .filter_map(|(target, reachability)| {
                let until = reachability.refused_until?;
                self.find(target).map(|_| until)
            });
        refused.chain(ready).min()
    }

    /// What the server's refusals let us try. After the first one, something else shows whether it
    /// was for the words.
    fn permission(&self, target: &Name) -> Permission {
        let Some(reachability) = self.reachability.get(target) else {
            return Permission::All;
        };
        let has_open = || self.sent.iter().any(|sent| sent.target == *target);
        if reachability.refused.lines > 0 || reachability.is_careful && has_open() {
            return Permission::Nothing;
        }
        if reachability.refused_until.is_none() {
            return Permission::All;
        }
        let is_first = reachability.backoff.failures() <= 1;
        let may_help = reachability.takes_some || is_first;
        if may_help && !reachability.is_throttled {
            Permission::New
        } else {
            Permission::Nothing
        }
    }

    /// The next line, if one waits and the clock allows it. Announcements older than `oldest`
    /// (seconds since the epoch) share one line.
    pub fn next(&mut self, now: Instant, oldest: i64, router: &Router) -> Option<Line> {
        for reachability in self.reachability.values_mut() {
            reachability.refused_until = reachability.refused_until.filter(|until| *until > now);
        }
        if !self.has_upstream || !self.clock.is_ready(now) {
            return None;
        }
        let with_people = self.clock.is_ready_for_person(now);
        let (position, is_reply) = self.choose(router, with_people)?;
        let mut queue = self.queues.remove(position)?;
        let line = if is_reply {
            self.send_reply(&mut queue)
        } else {
            self.send_announcements(&mut queue, oldest, router)
        };
        if queue.has_waiting() {
            self.queues.push_back(queue);
        }
        if let Some(line) = &line {
            self.clock.charge(line.bytes().len(), now);
        }
        line
    }

    /// Whose turn it is, and whether for a reply. People may have to leave what is left of a burst
    /// to channels; they have their turn among lines to these all the same.
    fn choose(&mut self, router: &Router, with_people: bool) -> Option<(usize, bool)> {
        let find = |is_channel: bool, is_reply: bool| {
            self.queues.iter().position(|queue| {
                queue.target.is_channel() == is_channel
                    && queue.has(is_reply, self.permission(&queue.target), router)
            })
        };
        let channel_reply = find(true, true);
        let channel_news = find(true, false);
        let private_reply = find(false, true);
        let private_news = find(false, false);
        let channel = self.prefer(channel_reply, channel_news);
        let private = self.prefer(private_reply, private_news);
        let private_turn = self.channel_lines_in_a_row >= CHANNEL_LINES_IN_A_ROW;
        let chosen = if private_turn {
            private.or(channel)
        } else {
            channel.or(private.filter(|_| with_people))
        };
        if channel.is_some() && chosen == channel && private.is_some() {
            self.channel_lines_in_a_row += 1;
        } else {
            self.channel_lines_in_a_row = 0;
        }
        let news_waits = channel_news.is_some() || private_news.is_some();
        match chosen {
            Some((_, true)) if news_waits => self.replies_in_a_row += 1,
            _ => self.replies_in_a_row = 0,
        }
        chosen
    }

    /// Replies come first, but not for ever.
    fn prefer(&self, reply: Option<usize>, news: Option<usize>) -> Option<(usize, bool)> {
        let reply = reply.map(|position| (position, true));
        let news = news.map(|position| (position, false));
        if self.replies_in_a_row >= REPLIES_IN_A_ROW {
            news.or(reply)
        } else {
            reply.or(news)
        }
    }

    fn send_reply(&mut self, queue: &mut Queue) -> Option<Line> {
        match queue.replies.pop_front()? {
            Reply::Raw(line) => Some(line),
            Reply::Text { text, is_notice } => {
                let text = self.match_colors(&queue.target, text);
                let line = text_line(&queue.target, &text, is_notice);
                self.note_sent(&queue.target, Content::Reply { text, is_notice });
                Some(line)
            }
        }
    }

    fn send_announcements(
        &mut self,
        queue: &mut Queue,
        oldest: i64,
        router: &Router,
    ) -> Option<Line> {
        let route = router(&queue.target)?;
        let (text, announcements) = if route.is_muted {
            queue.take_watched(route.budget)?
        } else {
            let reachability = self.reachability.get(&queue.target);
            let singly = reachability.is_some_and(|r| r.takes_some || !r.was_heard);
            queue.take_next(oldest, route.budget, self.clock.is_paced(), singly)
        };
        let text = self.match_colors(&queue.target, text);
        let line = route.line(&queue.target, &text);
        let has_colors = is_colored(&text);
        let content = Content::Announcements {
            announcements,
            has_colors,
        };
        self.note_sent(&queue.target, content);
        Some(line)
    }

    /// The text as the target takes it.
    fn match_colors(&self, target: &Name, text: String) -> String {
        let reachability = self.reachability.get(target);
        let takes_colors = reachability.is_none_or(|r| r.colors == Colors::Taken);
        if takes_colors || !is_colored(&text) {
            return text;
        }
        strip_formatting(&text)
    }

    fn note_sent(&mut self, target: &Name, content: Content) {
        self.last_number += 1;
        self.sent.push_back(Sent {
            number: self.last_number,
            target: target.clone(),
            content,
        });
        if self.sent.len() > OPEN_LINES {
            let is_reply = |sent: &Sent| matches!(sent.content, Content::Reply { .. });
            if let Some(oldest) = self.sent.iter().position(is_reply) {
                self.sent.remove(oldest);
            }
        }
    }

    // Delivery

    /// The number of the last line, if the connection should be asked whether it has arrived: it
    /// matters for announcements, for lines with colours, and where something was refused.
    pub fn unconfirmed(&self) -> Option<u64> {
        let is_open = |sent: &Sent| {
            let is_news = matches!(sent.content, Content::Announcements { .. });
            let reachability = self.reachability.get(&sent.target);
            let is_refused = reachability.is_some_and(|r| r.refused.lines > 0 || r.is_careful);
            is_news || is_refused || sent.content.has_colors()
        };
        let last = self.sent.back().map(|sent| sent.number);
        last.filter(|_| self.sent.iter().any(is_open))
    }

    /// Whether nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// The server has refused something that was said to a target. It belongs to a line that was
    /// sent before; to which one shows when the connection answers our question.
    pub fn on_refused(&mut self, target: &Name, refusal: &Refusal) {
        if !self.sent.iter().any(|sent| sent.target == *target) {
            let reason = &refusal.reason;
            log!(Debug, "{target}: {reason}; nothing that we said is open");
            return;
        }
        let reachability = reachability_of(&mut self.reachability, target);
        reachability.refused.lines += 1;
        reachability.refused.is_rate |= refusal.is_rate;
        reachability.refused.is_gone |= refusal.is_gone;
        reachability.reason.clone_from(&refusal.reason);
    }

    /// The connection has answered the question that followed line `number`.
    pub fn confirm(&mut self, number: u64, now: Instant) -> Confirmation {
        let mut confirmed_lines: BTreeMap<Name, Vec<Sent>> = BTreeMap::new();
        let is_confirmed = |sent: &Sent| sent.number <= number;
        while self.sent.front().is_some_and(is_confirmed) {
            if let Some(sent) = self.sent.pop_front() {
                confirmed_lines
                    .entry(sent.target.clone())
                    .or_default()
                    .push(sent);
            }
        }
        let mut confirmation = Confirmation::default();
        for (target, lines) in confirmed_lines {
            let mut has_delivered = false;
            let is_reachable = self.resolve(&target, lines, &mut has_delivered, now);
            if has_delivered {
                confirmation.told.push(target);
            } else if !is_reachable {
                confirmation.unreachable.push(target);
            }
        }
        self.drop_empty_queues();
        confirmation
    }

    /// The connection has lost the lines up to this number: a question behind them was not answered,
    /// and a later one was.
    pub fn lose(&mut self, number: u64) {
        let end = self.sent.partition_point(|sent| sent.number <= number);
        let lost: Vec<Sent> = self.sent.drain(..end).collect();
        for sent in lost.into_iter().rev() {
            let target = sent.target.clone();
            self.put_back(&target, vec![sent], false);
        }
        self.drop_empty_queues();
    }

    /// Sorts the lines of a target into delivered and refused. Returns false if it is a person who
    /// may never be told.
    fn resolve(
        &mut self,
        target: &Name,
        lines: Vec<Sent>,
        has_delivered: &mut bool,
        now: Instant,
    ) -> bool {
        let is_news = |sent: &Sent| matches!(sent.content, Content::Announcements { .. });
        let has_refused = self.find(target).is_some_and(Queue::has_refused);
        let Some(reachability) = self.reachability.get_mut(target) else {
            *has_delivered |= lines.iter().any(is_news);
            return true;
        };
        let refused = std::mem::take(&mut reachability.refused);
        if refused.lines == 0 {
            *has_delivered |= lines.iter().any(is_news);
            reachability.on_delivered(target, has_refused);
            return true;
        }
        let has_colors = |sent: &Sent| sent.content.has_colors();
        let colored = lines.iter().filter(|sent| has_colors(sent)).count();
        if colored > 0 && !refused.is_rate {
            // Some channels take no colours: once more without.
            reachability.colors = Colors::OnTrial;
            let all = refused.lines > colored;
            let (again, delivered): (Vec<Sent>, Vec<Sent>) =
                lines.into_iter().partition(|sent| all || has_colors(sent));
            *has_delivered |= delivered.iter().any(is_news);
            self.put_back(target, again, true);
            return true;
        }
        self.take_refusal(target, lines, &refused, now)
    }

    /// A target has not taken so many of these lines; which ones is not known. Returns false if it
    /// is a person who may never be told.
    fn take_refusal(
        &mut self,
        target: &Name,
        mut lines: Vec<Sent>,
        refused: &Refused,
        now: Instant,
    ) -> bool {
        let reachability = reachability_of(&mut self.reachability, target);
        if reachability.colors == Colors::OnTrial {
            // It was not for these.
            reachability.colors = Colors::Taken;
        }
        let was_heard = reachability.was_heard;
        let is_again = lines.iter().any(Sent::was_refused);
        reachability.is_careful = true;
        reachability.takes_some |= refused.lines < lines.len() || was_heard && is_again;
        reachability.is_throttled = refused.is_rate;
        let reason = &reachability.reason;
        let given_up = unspeakable(&lines).filter(|_| was_heard && !refused.is_rate);
        if let Some(announcement) = given_up {
            let label = &announcement.label;
            log!(
                Warning,
                "IRC: {target} does not take {label}, given up: {reason}"
            );
            return true;
        }
        reachability.was_heard = false;
        let mut wait = reachability.backoff.next_wait();
        if refused.is_rate {
            wait = wait.min(RATE_RETRY);
        }
        reachability.refused_until = Some(now + wait);
        let failures = reachability.backoff.failures();
        if failures <= 1 {
            log!(Warning, "IRC: cannot speak to {target}: {reason}");
        }
        for announcement in lines.iter_mut().flat_map(Sent::announcements_mut) {
            announcement.refusals += u32::from(!refused.is_rate);
        }
        self.queue(target).drop_replies();
        self.put_back(target, lines, false);
        target.is_channel() || !refused.is_gone && failures < PERSON_TRIES
    }

    /// Lines that did not arrive wait once more, before what came later. Replies only if they will
    /// be dressed otherwise: a refused reply is of no use any more.
    fn put_back(&mut self, target: &Name, lines: Vec<Sent>, with_replies: bool) {
        let queue = self.queue(target);
        for sent in lines.into_iter().rev() {
            match sent.content {
                Content::Announcements { announcements, .. } => {
                    queue.announcements.splice(..0, announcements);
                }
                Content::Reply { text, is_notice } if with_replies && is_colored(&text) => {
                    let text = strip_formatting(&text);
                    queue.replies.push_front(Reply::Text { text, is_notice });
                }
                Content::Reply { .. } => {}
            }
        }
    }

    /// A sign that this target can be told again.
    pub fn allow(&mut self, target: &Name) {
        if let Some(reachability) = self.reachability.get_mut(target) {
            reachability.refused_until = None;
            reachability.backoff.reset();
        }
    }

    /// The bouncer has lost its network, or has it again. What it took meanwhile is lost.
    pub fn set_upstream(&mut self, has_upstream: bool) {
        if self.has_upstream && !has_upstream {
            self.put_all_back();
        }
        self.has_upstream = has_upstream;
    }

    /// The connection is gone: replies are no use any more, announcements that may not have
    /// arrived will be said again, and refusals are forgotten.
    pub fn on_disconnected(&mut self, now: Instant) {
        self.clock.reset(now);
        self.clock.set_software(Software::Unknown);
        for queue in &mut self.queues {
            queue.replies.clear();
        }
        self.put_all_back();
        self.reachability.clear();
        self.has_upstream = true;
    }

    fn put_all_back(&mut self) {
        for reachability in self.reachability.values_mut() {
            reachability.refused = Refused::default();
        }
        self.lose(self.last_number);
    }

    /// Every announcement whose arrival is not certain.
    pub fn pending(&self) -> Vec<Announcement> {
        let mut pending = Vec::new();
        for sent in &self.sent {
            if let Content::Announcements { announcements, .. } = &sent.content {
                pending.extend(announcements.iter().cloned());
            }
        }
        for queue in &self.queues {
            pending.extend(queue.announcements.iter().cloned());
        }
        pending
    }
}

fn omission(count: usize) -> String {
    format!("… and {count} more, ask in private")
}

/// Beyond the limit, only the number of the least important ones is kept.
fn drop_least_important(announcements: &mut Vec<Announcement>) {
    let named = |a: &Announcement| a.omitted == 0 && !a.is_watched;
    if announcements.iter().filter(|a| named(a)).count() <= ANNOUNCEMENTS {
        return;
    }
    let candidates = announcements.iter().enumerate().filter(|(_, a)| named(a));
    // Of equally unimportant ones the oldest goes: what is newer says more of how things stand.
    let least = candidates.rev().max_by_key(|(_, a)| importance(a));
    let Some((position, _)) = least else {
        return;
    };
    let dropped = announcements.remove(position);
    match announcements.iter_mut().find(|a| a.omitted > 0) {
        Some(counter) => {
            counter.omitted += 1;
            counter.at = dropped.at;
        }
        None => announcements.push(Announcement {
            target: dropped.target,
            at: dropped.at,
            was_muted: dropped.was_muted,
            omitted: 1,
            ..Announcement::default()
        }),
    }
}

/// The lower, the more important; what is no end of a build comes last.
fn importance(announcement: &Announcement) -> usize {
    let least = Outcome::ALL.len();
    announcement.outcome.map_or(least, Outcome::importance)
}

impl Queue {
    /// Questions to the server stay: a command waits for their answer.
    fn drop_replies(&mut self) {
        self.replies.retain(|reply| matches!(reply, Reply::Raw(_)));
    }

    /// Whether something that was refused waits.
    fn has_refused(&self) -> bool {
        self.announcements.iter().any(|a| a.refusals > 0)
    }

    fn has_waiting(&self) -> bool {
        !self.replies.is_empty() || !self.announcements.is_empty()
    }

    /// Whether a reply, or an announcement, can go now.
    fn has(&self, is_reply: bool, permission: Permission, router: &Router) -> bool {
        let Some(route) = router(&self.target).filter(|_| permission != Permission::Nothing) else {
            return false;
        };
        if is_reply {
            return !self.replies.is_empty();
        }
        let may_go = |a: &Announcement| {
            let is_allowed = permission == Permission::All || a.refusals == 0;
            is_allowed && (a.is_watched || !route.is_muted)
        };
        self.announcements.iter().any(may_go)
    }

    /// Takes the next announcement that somebody waits for, while the others are muted.
    fn take_watched(&mut self, budget: usize) -> Option<(String, Vec<Announcement>)> {
        let watched = self.announcements.iter().enumerate();
        let watched = watched.filter(|(_, a)| a.is_watched);
        let (position, _) = watched.min_by_key(|(_, a)| a.refusals)?;
        let watched = self.announcements.remove(position);
        Some((fit(&watched.text, budget), vec![watched]))
    }

    /// Takes what is to be said next: one announcement, or a summary of several. There is at least
    /// one. What was refused comes last, and singly as long as it is not known why.
    fn take_next(
        &mut self,
        oldest: i64,
        budget: usize,
        is_paced: bool,
        singly: bool,
    ) -> (String, Vec<Announcement>) {
        let is_refused = |a: &Announcement| a.refusals > 0;
        let refused = self.announcements.iter().filter(|a| is_refused(a)).count();
        if refused == self.announcements.len() && singly {
            let refusals = self.announcements.iter().map(|a| a.refusals);
            let least = refusals.enumerate().min_by_key(|(_, refusals)| *refusals);
            let only = self.announcements.remove(least.map_or(0, |(at, _)| at));
            return (fit(&only.text, budget), vec![only]);
        }
        if refused == 0 || refused == self.announcements.len() {
            return self.take_usual(oldest, budget, is_paced);
        }
        let aside: Vec<Announcement> = self
            .announcements
            .extract_if(.., |a| is_refused(a))
            .collect();
        let taken = self.take_usual(oldest, budget, is_paced);
        self.announcements.splice(..0, aside);
        taken
    }

    fn take_usual(
        &mut self,
        oldest: i64,
        budget: usize,
        is_paced: bool,
    ) -> (String, Vec<Announcement>) {
        if self.announcements.iter().any(|a| a.was_muted) {
            let muted: Vec<Announcement> =
                self.announcements.extract_if(.., |a| a.was_muted).collect();
            if let [only] = &muted[..]
                && only.omitted == 0
            {
                return (fit(&format!("while muted: {}", only.text), budget), muted);
            }
            return Summary::new("while muted:", muted).whole(budget);
        }
        let is_missed = |a: &Announcement| a.at < oldest;
        if self.announcements.iter().filter(|a| is_missed(a)).count() > 1 {
            let missed = self
                .announcements
                .extract_if(.., |a| is_missed(a))
                .collect();
            return Summary::new("missed while away:", missed).whole(budget);
        }
        let has_omitted = self.announcements.iter().any(|a| a.omitted > 0);
        let is_pile = is_paced && self.announcements.len() >= SUMMARY_THRESHOLD;
        if !is_pile && !has_omitted {
            let first = self.announcements.remove(0);
            return (fit(&first.text, budget), vec![first]);
        }
        let all = std::mem::take(&mut self.announcements);
        let (text, told, rest) = Summary::new("meanwhile:", all).part(budget);
        self.announcements = rest;
        (text, told)
    }
}

/// One line for several announcements, the most important first.
struct Summary {
    heading: &'static str,
    named: Vec<Announcement>,
    counted: Vec<Announcement>,
    /// Starts whose end is told beside them: they go without a word.
    implied: Vec<Announcement>,
    /// Where the builders stand now, and a link.
    ending: String,
}

impl Summary {
    fn new(heading: &'static str, mut all: Vec<Announcement>) -> Summary {
        let ends: BTreeSet<String> = all
            .iter()
            .filter(|a| a.outcome.is_some())
            .map(|a| format!("{} started", a.label))
            .collect();
        let implied = all.extract_if(.., |a| ends.contains(&a.label)).collect();
        let counted = all.extract_if(.., |a| a.omitted > 0).collect();
        let ending = standing(&all);
        let order: Vec<String> = all.iter().map(|a| a.builder.clone()).collect();
        let first_of = |builder: &str| order.iter().position(|other| other == builder);
        all.sort_by_key(|a| (importance(a), first_of(&a.builder)));
        Summary {
            heading,
            named: all,
            counted,
            implied,
            ending,
        }
    }

    /// As many as fit, and the number of the rest, which is told with that.
    fn whole(self, budget: usize) -> (String, Vec<Announcement>) {
        let (text, told) = self.lay_out(budget);
        let counted: usize = self.counted.iter().map(|a| a.omitted).sum();
        let omitted = self.named.len() - told + counted;
        let text = self.finish(text, omitted);
        let all = [self.named, self.counted, self.implied].concat();
        (fit(&text, budget), all)
    }

    /// As many as fit; the rest is for the next line, which then names it. What cannot be named any
    /// more is counted in the last one.
    fn part(mut self, budget: usize) -> (String, Vec<Announcement>, Vec<Announcement>) {
        let (text, told) = self.lay_out(budget);
        let mut rest = self.named.split_off(told);
        let mut omitted = 0;
        let counted = std::mem::take(&mut self.counted);
        let mut done = Vec::new();
        if rest.is_empty() {
            omitted = counted.iter().map(|a| a.omitted).sum();
            done = counted;
        } else {
            rest.extend(counted);
        }
        let text = self.finish(text, omitted);
        done.extend(self.named);
        done.extend(self.implied);
        (fit(&text, budget), done, rest)
    }

    /// The heading and as many names as fit, by result; and how many these are.
    fn lay_out(&self, budget: usize) -> (String, usize) {
        let room = budget.saturating_sub(OMITTED_ROOM + self.ending.len());
        let mut text = self.heading.to_owned();
        for (position, announcement) in self.named.iter().enumerate() {
            let previous = position.checked_sub(1).map(|before| &self.named[before]);
            let item = summary_item(announcement, previous);
            if position > 0 && text.len() + item.len() > room {
                return (text, position);
            }
            text.push_str(&item);
        }
        (text, self.named.len())
    }

    fn finish(&self, mut text: String, omitted: usize) -> String {
        if omitted > 0 {
            text.push_str(&format!(" and {omitted} more"));
        }
        text.push_str(&self.ending);
        text
    }
}

/// ` failure app #1`, then `, #2` of the same builder, or `, lib #3`, or `; success app #4`.
fn summary_item(announcement: &Announcement, previous: Option<&Announcement>) -> String {
    let label = &announcement.label;
    let word = announcement.outcome.map_or("also", Outcome::word);
    let Some(previous) = previous else {
        return format!(" {word} {label}");
    };
    if previous.outcome != announcement.outcome {
        return format!("; {word} {label}");
    }
    let is_same = !announcement.builder.is_empty() && previous.builder == announcement.builder;
    let number = label.strip_prefix(&announcement.builder);
    match number {
        Some(number) if is_same => format!(",{number}"),
        _ => format!(", {label}"),
    }
}

/// Where builders with several results stand now, each branch by itself, and the link to the build
/// that matters most of those that stand.
fn standing(announcements: &[Announcement]) -> String {
    let mut last: BTreeMap<[&str; 2], &Announcement> = BTreeMap::new();
    let mut changed: BTreeSet<[&str; 2]> = BTreeSet::new();
    // What is of no one builder stands for itself.
    let (of_builders, others): (Vec<&Announcement>, Vec<&Announcement>) = announcements
        .iter()
        .filter(|a| a.outcome.is_some())
        .partition(|a| !a.builder.is_empty());
    for announcement in of_builders {
        let place = [announcement.builder.as_str(), &announcement.branch];
        if let Some(before) = last.insert(place, announcement)
            && before.outcome != announcement.outcome
        {
            changed.insert(place);
        }
    }
    let mut ending = String::new();
    if (1..=SUMMARY_THRESHOLD).contains(&changed.len()) {
        let state = |place: &[&str; 2]| {
            let outcome = last[place].outcome.map_or("", Outcome::word);
            match place {
                [builder, ""] => format!("{builder} {outcome}"),
                [builder, branch] => format!("{builder} on {branch} {outcome}"),
            }
        };
        let states: Vec<String> = changed.iter().map(state).collect();
        ending = format!("; now {}", states.join(", "));
    }
    let standing = last.values().copied().chain(others);
    let worst = standing.min_by_key(|a| importance(a));
    if let Some(worst) = worst.filter(|a| !a.url.is_empty()) {
        ending.push_str(&format!(" {}", worst.url));
    }
    ending
}

/// A line of at most `budget` bytes. The link at its end is worth more than the end of a long
/// reason.
fn fit(text: &str, budget: usize) -> String {
    if text.len() <= budget {
        return text.to_owned();
    }
    let (line, link) = text.rsplit_once(' ').unwrap_or((text, ""));
    let room = budget
        .saturating_sub("… ".len() + link.len())
        .max(budget / 2);
    let line = format!("{}… {link}", &line[..line.floor_char_boundary(room)]);
    line[..line.floor_char_boundary(budget)].to_owned()
}

#[cfg(test)]
mod tests;
