//! The channels that we are in or want to be in: joining, refusals, kicks, and who has which rank.
//! Pure.

use super::Action;
use super::Actions;
use super::isupport::Isupport;
use super::modes::parse_modes;
use super::numerics::{ERR_LINKCHANNEL, ERR_TOOMANYCHANNELS};
use super::wire::Line;
use crate::names::{Casemapping, Name};
use crate::sanitize::sanitize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Seconds until a refused JOIN is tried again, the last of them for ever.
const RETRY: [u64; 4] = [30, 60, 120, 300];
/// Where a channel forwards us, we look in rarely: in and out again is seen by those who are there.
const RETRY_FORWARDED: Duration = Duration::from_secs(3600);
/// A JOIN that the server does not answer at all is tried again then.
const NO_ANSWER: Duration = Duration::from_secs(300);
/// Seconds until we come back after a kick, doubling.
const AFTER_KICK: u64 = 30;
/// So many kicks in a row: we wait for an INVITE.
const KICKS: u32 = 5;
/// Kicks are in a row unless we were in the channel for so long.
const CALM: Duration = Duration::from_secs(3600);
/// Channels in one JOIN, and bytes: some servers take no more.
const CHANNELS_PER_JOIN: usize = 10;
const BYTES_PER_JOIN: usize = 400;
/// People with a rank in one channel: a server could name more for ever.
const RANKED: usize = 10_000;

/// Where we stand with one channel.
///
/// ```text
/// Due ──JOIN──► Joining ──JOIN of ours──► Joined ──KICK, PART──► Due, AwaitingInvite
///  ▲               │                                                   │
///  └──refused──────┘◄──────────────── INVITE ──────────────────────────┘
/// ```
#[derive(Debug)]
enum State {
    /// A JOIN goes out then.
    Due {
        at: Instant,
    },
    /// A JOIN is on its way; without an answer it is due again then.
    Joining {
        until: Instant,
    },
    Joined {
        since: Instant,
    },
    /// We were kicked too often.
    AwaitingInvite,
}

#[derive(Debug)]
struct Channel {
    name: Name,
    key: String,
    state: State,
    refusals: usize,
    /// In a row.
    kicks: u32,
    /// As it was logged last.
    last_refusal: String,
    /// Rank modes by nick.
    ranks: BTreeMap<Name, String>,
}

impl Channel {
    fn is_joined(&self) -> bool {
        matches!(self.state, State::Joined { .. })
    }

    fn due_at(&self) -> Option<Instant> {
        match self.state {
            State::Due { at } | State::Joining { until: at } => Some(at),
            State::Joined { .. } | State::AwaitingInvite => None,
        }
    }
}

#[derive(Debug, Default)]
pub struct Channels {
    list: Vec<Channel>,
}

impl Channels {
    fn find(&self, name: &Name) -> Option<&Channel> {
        self.list.iter().find(|channel| channel.name == *name)
    }

    fn find_mut(&mut self, name: &Name) -> Option<&mut Channel> {
        self.list.iter_mut().find(|channel| channel.name == *name)
    }

    /// We want to be in a channel, from now on.
    pub fn want(&mut self, name: Name, key: &str, now: Instant) {
        let due = State::Due { at: now };
        match self.find_mut(&name) {
            Some(channel) => {
                channel.key = key.to_owned();
                channel.kicks = 0;
                if !channel.is_joined() {
                    channel.state = due;
                }
            }
            None => self.list.push(Channel {
                name,
                key: key.to_owned(),
                state: due,
                refusals: 0,
                kicks: 0,
                last_refusal: String::new(),
                ranks: BTreeMap::new(),
            }),
        }
    }

    /// We do not want to be in a channel any more. Returns whether we are in it, or are about to be.
    pub fn unwant(&mut self, name: &Name) -> bool {
        let must_part = self.find(name).is_some_and(|channel| {
            matches!(channel.state, State::Joined { .. } | State::Joining { .. })
        });
        self.list.retain(|channel| channel.name != *name);
        must_part
    }

    pub fn is_joined(&self, name: &Name) -> bool {
        self.find(name).is_some_and(Channel::is_joined)
    }

    /// The channels that we are in.
    pub fn joined(&self) -> impl Iterator<Item = &Name> {
        let joined = self.list.iter().filter(|channel| channel.is_joined());
        joined.map(|channel| &channel.name)
    }

    /// A channel of ours as we write it.
    pub fn canonical(&self, name: &Name) -> Option<&Name> {
        self.find(name).map(|channel| &channel.name)
    }

    /// The rank modes of someone in a channel.
    pub fn ranks(&self, channel: &Name, nick: &Name) -> &str {
        let ranks = self.find(channel).and_then(|c| c.ranks.get(nick));
        ranks.map_or("", String::as_str)
    }

    /// The server's way to compare names has become known.
    pub fn refold(&mut self, casemapping: Casemapping) {
        for channel in &mut self.list {
            channel.name = channel.name.refold(casemapping);
            channel.ranks.clear();
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.list.iter().filter_map(Channel::due_at).min()
    }

    /// Joins the channels that are due, several to a line; keyed ones first, as JOIN wants them.
    pub fn join_due(&mut self, now: Instant, actions: &mut Actions) {
        let is_due = |c: &&mut Channel| c.due_at().is_some_and(|at| at <= now);
        let mut due: Vec<&mut Channel> = self.list.iter_mut().filter(is_due).collect();
        due.sort_by_key(|channel| channel.key.is_empty());
        let mut line = JoinLine::default();
        for channel in due {
            channel.state = State::Joining {
                until: now + NO_ANSWER,
            };
            if line.is_full(channel) {
                actions.extend(line.finish());
                line = JoinLine::default();
            }
            line.add(channel);
        }
        actions.extend(line.finish());
    }

    /// We are in a channel now.
    pub fn on_own_join(&mut self, name: &Name, now: Instant) {
        if let Some(channel) = self.find_mut(name) {
            log!(Info, "IRC: joined {}", channel.name);
            channel.state = State::Joined { since: now };
            channel.refusals = 0;
            channel.last_refusal.clear();
            channel.ranks.clear();
        }
    }

    /// We have been kicked, or have parted without wanting to.
    pub fn on_own_leave(&mut self, name: &Name, by: &str, reason: &str, now: Instant) {
        let Some(channel) = self.find_mut(name) else {
            return;
        };
        let was_calm = match channel.state {
            State::Joined { since } => now >= since + CALM,
            _ => false,
        };
        channel.kicks = if was_calm { 1 } else { channel.kicks + 1 };
        channel.ranks.clear();
        let next = if channel.kicks > KICKS {
            channel.state = State::AwaitingInvite;
            "waiting for an INVITE".to_owned()
        } else {
            let seconds = AFTER_KICK << (channel.kicks - 1);
            channel.state = State::Due {
                at: now + Duration::from_secs(seconds),
            };
            format!("back in {seconds} s")
        };
        let by = sanitize(by);
        let reason = sanitize(reason);
        log!(
            Warning,
            "IRC: kicked from {} by {by}: {reason}; {next}",
            channel.name
        );
    }

    /// Someone else has left a channel.
    pub fn on_leave(&mut self, name: &Name, nick: &Name) {
        if let Some(channel) = self.find_mut(name) {
            channel.ranks.remove(nick);
        }
    }

    /// Someone has another nick, or none any more.
    pub fn on_nick(&mut self, old: &Name, new: Option<&Name>) {
        for channel in &mut self.list {
            let ranks = channel.ranks.remove(old);
            if let (Some(new), Some(ranks)) = (new, ranks) {
                channel.ranks.insert(new.clone(), ranks);
            }
        }
    }

    /// A part of the list of names.
    pub fn on_names(&mut self, name: &Name, names: &str, isupport: &Isupport) {
        let Some(channel) = self.find_mut(name) else {
            return;
        };
        for word in names.split_whitespace() {
            let (ranks, nick) = isupport.split_ranks(word);
            if !ranks.is_empty() {
                set_ranks(channel, isupport.casemapping.name(nick), ranks);
            }
        }
    }

    /// The modes of a channel change.
    pub fn on_mode(&mut self, name: &Name, changes: &str, params: &[&str], isupport: &Isupport) {
        let Some(channel) = self.find_mut(name) else {
            return;
        };
        for change in parse_modes(changes, params, isupport) {
            let Some(nick) = change.param else {
                continue;
            };
            if !isupport.rank_modes.contains(change.mode) {
                continue;
            }
            let nick = isupport.casemapping.name(nick);
            let mut ranks = channel.ranks.get(&nick).cloned().unwrap_or_default();
            ranks.retain(|rank| rank != change.mode);
            if change.is_set {
                ranks.push(change.mode);
            }
            set_ranks(channel, nick, ranks);
        }
    }

    /// Somebody invites us: that forgives kicks and refusals.
    pub fn on_invite(&mut self, name: &Name, now: Instant) {
        if let Some(channel) = self.find_mut(name)
            && !channel.is_joined()
        {
            channel.kicks = 0;
            channel.state = State::Due { at: now };
        }
    }

    /// A JOIN is refused. 405 stands for all channels of the line: the server stops there.
    pub fn on_refused(
        &mut self,
        name: &Name,
        numeric: &str,
        params: &[&str],
        casemapping: Casemapping,
        now: Instant,
        actions: &mut Actions,
    ) {
        let reason = params.last().copied().unwrap_or("");
        let is_forwarded = numeric == ERR_LINKCHANNEL;
        if is_forwarded
            && let [forward, _, ..] = params
            && self.find(&casemapping.name(forward)).is_none()
        {
            // We would sit there for no reason.
            let why = format!("forwarded from {name}");
            let forward_shown = sanitize(forward);
            if self.find(name).is_some_and(|c| c.last_refusal != reason) {
                log!(
                    Warning,
                    "IRC: {name} forwards to {forward_shown}; leaving that"
                );
            }
            actions.push(Action::Send(Line::new("PART", &[forward], Some(&why))));
        }
        let whole_line = numeric == ERR_TOOMANYCHANNELS;
        for channel in &mut self.list {
            let is_joining = matches!(channel.state, State::Joining { .. });
            let is_meant = channel.name == *name || whole_line && is_joining;
            if !is_meant || channel.is_joined() {
                continue;
            }
            let wait = Duration::from_secs(RETRY[channel.refusals.min(RETRY.len() - 1)]);
            let wait = if is_forwarded { RETRY_FORWARDED } else { wait };
            channel.refusals += 1;
            channel.state = State::Due { at: now + wait };
            if channel.last_refusal != reason {
                channel.last_refusal = reason.to_owned();
                let shown = sanitize(reason);
                let name = &channel.name;
                log!(
                    Warning,
                    "IRC: cannot join {name}: {shown} ({numeric}); still trying"
                );
            }
        }
    }

    /// The connection is gone, ours or a bouncer's: all channels are due from then on, but those
    /// where we wait for an INVITE.
    pub fn on_disconnected(&mut self, at: Instant) {
        for channel in &mut self.list {
            channel.ranks.clear();
            channel.refusals = 0;
            if !matches!(channel.state, State::AwaitingInvite) {
                channel.state = State::Due { at };
            }
        }
    }
}

fn set_ranks(channel: &mut Channel, nick: Name, ranks: String) {
    if ranks.is_empty() {
        channel.ranks.remove(&nick);
        return;
    }
    if channel.ranks.len() >= RANKED {
        channel.ranks.clear();
    }
    channel.ranks.insert(nick, ranks);
}

/// One JOIN while it is put together.
#[derive(Default)]
struct JoinLine {
    names: Vec<String>,
    keys: Vec<String>,
    bytes: usize,
}

impl JoinLine {
    fn is_full(&self, next: &Channel) -> bool {
        let bytes = self.bytes + next.name.as_str().len() + next.key.len() + 2;
        self.names.len() >= CHANNELS_PER_JOIN || !self.names.is_empty() && bytes > BYTES_PER_JOIN
    }

    fn add(&mut self, channel: &Channel) {
        self.bytes += channel.name.as_str().len() + channel.key.len() + 2;
        self.names.push(channel.name.to_string());
        if !channel.key.is_empty() {
            self.keys.push(channel.key.clone());
        }
    }

    fn finish(self) -> Option<Action> {
        if self.names.is_empty() {
            return None;
        }
        let names = self.names.join(",");
        let line = if self.keys.is_empty() {
            Line::new("JOIN", &[&names], None)
        } else {
            Line::secret("JOIN", &[&names, &self.keys.join(",")], None)
        };
        Some(Action::Send(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Casemapping::default().name(text)
    }

    /// A list of channels with its clock.
    struct Rig {
        channels: Channels,
        start: Instant,
        now: Instant,
    }

    impl Rig {
        fn new(names: &[&str]) -> Rig {
            let now = Instant::now();
            let mut channels = Channels::default();
            for text in names {
                channels.want(name(text), "", now);
            }
            let start = now;
            Rig {
                channels,
                start,
                now,
            }
        }

        fn joins(&mut self) -> Vec<String> {
            let mut actions = Actions::new();
            self.channels.join_due(self.now, &mut actions);
            lines(actions)
        }

        /// Seconds until something is due.
        fn due_in(&self) -> Option<u64> {
            let deadline = self.channels.deadline()?;
            Some((deadline - self.now).as_secs())
        }

        fn refuse(&mut self, channel: &str, numeric: &str, params: &[&str]) -> Vec<String> {
            let mut actions = Actions::new();
            let mapping = Casemapping::default();
            let name = name(channel);
            let now = self.now;
            self.channels
                .on_refused(&name, numeric, params, mapping, now, &mut actions);
            lines(actions)
        }
    }

    fn lines(actions: Actions) -> Vec<String> {
        let sent = actions.into_iter().map(|action| match action {
            Action::Send(line) => String::from_utf8(line.bytes()).unwrap(),
            other => panic!("{other:?}"),
        });
        sent.map(|line| line.trim_end().to_owned()).collect()
    }

    #[test]
    fn keyed_channels_come_first_in_a_join() {
        let mut rig = Rig::new(&["#a"]);
        rig.channels.want(name("#b"), "k", rig.now);
        assert_eq!(rig.joins(), ["JOIN #b,#a k"]);
    }

    #[test]
    fn many_channels_are_joined_in_few_lines() {
        let names: Vec<String> = (0..24).map(|i| format!("#channel{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let joins = Rig::new(&names).joins();
        let counts: Vec<usize> = joins.iter().map(|line| line.matches('#').count()).collect();
        assert_eq!(counts, [10, 10, 4]);
        let names: Vec<String> = (0..12).map(|i| format!("#{i:0100}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let joins = Rig::new(&names).joins();
        assert!(joins.iter().all(|line| line.len() < 500), "{joins:?}");
    }

    #[test]
    fn a_kick_is_answered_by_coming_back_later_and_later() {
        let mut rig = Rig::new(&["#a"]);
        rig.joins();
        rig.channels.on_own_join(&name("#A"), rig.now);
        assert!(rig.channels.is_joined(&name("#a")));
        for wait in [30, 60, 120, 240, 480] {
            rig.channels.on_own_leave(&name("#a"), "op", "out", rig.now);
            assert_eq!(rig.due_in(), Some(wait));
            rig.now += Duration::from_secs(wait);
            assert_eq!(rig.joins(), ["JOIN #a"]);
            rig.channels.on_own_join(&name("#a"), rig.now);
        }
        rig.channels.on_own_leave(&name("#a"), "op", "out", rig.now);
        assert_eq!(rig.due_in(), None, "kicked too often");
        rig.channels.on_disconnected(rig.now);
        assert_eq!(rig.due_in(), None);
        rig.channels.on_invite(&name("#a"), rig.now);
        assert_eq!(rig.joins(), ["JOIN #a"]);
    }

    #[test]
    fn a_calm_hour_forgives_a_kick() {
        let mut rig = Rig::new(&["#a"]);
        for _ in 0..3 {
            rig.joins();
            rig.channels.on_own_join(&name("#a"), rig.now);
            rig.now += CALM;
            rig.channels.on_own_leave(&name("#a"), "op", "out", rig.now);
            assert_eq!(rig.due_in(), Some(30));
            rig.now += Duration::from_secs(30);
        }
        assert!(rig.now > rig.start);
    }

    #[test]
    fn a_refused_join_is_tried_again_for_ever() {
        let mut rig = Rig::new(&["#a"]);
        for wait in [30, 60, 120, 300, 300] {
            assert_eq!(rig.joins(), ["JOIN #a"]);
            rig.refuse("#a", "471", &["full"]);
            assert_eq!(rig.due_in(), Some(wait));
            rig.now += Duration::from_secs(wait);
        }
        rig.joins();
        assert_eq!(rig.due_in(), Some(300), "no answer at all");
    }

    #[test]
    fn of_too_many_channels_each_is_tried_again() {
        let mut rig = Rig::new(&["#a", "#b", "#c"]);
        rig.joins();
        rig.channels.on_own_join(&name("#a"), rig.now);
        rig.refuse("#b", ERR_TOOMANYCHANNELS, &["too many"]);
        rig.now += Duration::from_secs(30);
        assert_eq!(rig.joins(), ["JOIN #b,#c"]);
    }

    #[test]
    fn where_we_are_forwarded_to_we_do_not_stay() {
        let mut rig = Rig::new(&["#a", "#b"]);
        rig.joins();
        let parted = rig.refuse("#a", ERR_LINKCHANNEL, &["##over", "Forwarding"]);
        assert_eq!(parted, ["PART ##over :forwarded from #a"]);
        let kept = rig.refuse("#a", ERR_LINKCHANNEL, &["#B", "Forwarding"]);
        assert_eq!(kept, [""; 0], "that one is ours");
        let mut rig = Rig::new(&["#a"]);
        rig.joins();
        rig.refuse("#a", ERR_LINKCHANNEL, &["##over", "Forwarding"]);
        assert_eq!(rig.due_in(), Some(RETRY_FORWARDED.as_secs()));
    }

    #[test]
    fn a_channel_is_parted_even_while_its_join_is_on_its_way() {
        let mut rig = Rig::new(&["#a"]);
        assert!(!rig.channels.unwant(&name("#a")), "nothing was sent yet");
        let mut rig = Rig::new(&["#a"]);
        rig.joins();
        assert!(rig.channels.unwant(&name("#a")));
        assert_eq!(rig.due_in(), None);
    }

    #[test]
    fn ranks_follow_their_people() {
        let mut isupport = Isupport::default();
        isupport.take("PREFIX=(qaohv)~&@%+");
        let mut rig = Rig::new(&["#a"]);
        rig.joins();
        rig.channels.on_own_join(&name("#a"), rig.now);
        let channels = &mut rig.channels;
        let a = name("#a");
        channels.on_names(&a, "bot @op &@admin %half [x]", &isupport);
        assert_eq!(channels.ranks(&a, &name("OP")), "o");
        assert_eq!(channels.ranks(&a, &name("admin")), "ao");
        channels.on_mode(&a, "+bl-o+o", &["*!*@x", "5", "op", "{X}"], &isupport);
        assert_eq!(channels.ranks(&a, &name("op")), "");
        assert_eq!(channels.ranks(&a, &name("[x]")), "o");
        channels.on_nick(&name("admin"), Some(&name("Boss")));
        assert_eq!(channels.ranks(&a, &name("admin")), "");
        assert_eq!(channels.ranks(&a, &name("boss")), "ao");
        channels.on_leave(&a, &name("boss"));
        channels.on_nick(&name("[x]"), None);
        assert_eq!(channels.ranks(&a, &name("boss")), "");
        assert_eq!(channels.ranks(&a, &name("[x]")), "");
        for number in 0..2 * RANKED {
            channels.on_names(&a, &format!("@n{number}"), &isupport);
        }
        assert!(channels.list[0].ranks.len() <= RANKED);
    }
}
