//! The rows of the table, group by group. Masters and bots that several rows need are started once, when the first row
//! needs them.

mod builds;
mod commands;
mod costs;
mod isolation;
mod load;

use super::Row;
use super::common::Lab;
use super::irc_server::IrcServer;
use super::subjects::{BenchBot, CountingProxy, Installation};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

const SIZES: [usize; 4] = [10, 100, 1000, 10_000];
/// Bots that take turns in answering, because each paces itself for IRC servers.
const POOL: usize = 6;
/// Lines that end `[irc]`.
const CHANNEL: &str = "[channel #bench]";
const ANNOUNCING: &str = "notify_events = finished\n[channel #bench]";

pub type Measure = fn(&mut Bench) -> Vec<Row>;

/// In this order: what wants silence comes before the load. The reporter never forgets a channel that it has left, so the
/// group for which it joins many is the last.
pub const GROUPS: [(&str, Measure); 14] = [
    ("size", costs::size),
    ("start", costs::start),
    ("memory", costs::memory),
    ("commands", commands::commands),
    ("idle", costs::idle),
    ("polls", costs::polls),
    ("events", builds::events),
    ("why", builds::why),
    ("beside", builds::beside),
    ("burst", load::burst),
    ("changes", load::changes),
    ("stall", load::stall),
    ("isolation", isolation::isolation),
    ("flood", load::flood),
];

/// Bots of one master, with the milliseconds that each took to join.
#[derive(Default)]
struct Pool {
    bots: Vec<BenchBot>,
    joined: Vec<f64>,
}

/// What the rows share.
pub struct Bench {
    irc: IrcServer,
    installations: BTreeMap<usize, Installation>,
    pools: BTreeMap<usize, Pool>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench {
            irc: IrcServer::start(),
            installations: BTreeMap::new(),
            pools: BTreeMap::new(),
        }
    }

    fn installation(&mut self, size: usize) -> &Installation {
        self.installations
            .entry(size)
            .or_insert_with(|| Installation::start(size, &self.irc))
    }

    /// A bot's configuration: the master's address, more lines of `[buildbot]`, and lines that end `[irc]`.
    fn config(&self, url: &str, nick: &str, buildbot: &str, irc: &str) -> String {
        let mut lab = Lab::new();
        lab.master_url = url.to_string();
        lab.irc_port = self.irc.port;
        lab.config(nick, buildbot, irc)
    }

    /// The bots of this master. They start one after the other, since their starts are measured.
    fn pool(&mut self, size: usize) -> &Pool {
        if !self.pools.contains_key(&size) {
            super::progress(&format!("starting {POOL} bots at {size} builders"));
            let url = self.installation(size).master.url();
            let pool = self.start_pool(size, &url);
            self.pools.insert(size, pool);
        }
        &self.pools[&size]
    }

    fn start_pool(&self, size: usize, url: &str) -> Pool {
        let mut pool = Pool::default();
        let start = Instant::now();
        for i in 0..POOL {
            // If starts take this long, two bots are enough.
            if i > 1 && start.elapsed() > seconds(60) {
                break;
            }
            let nick = format!("bot{size}x{i}");
            let config = self.config(url, &nick, "", CHANNEL);
            let Some((bot, joined)) = BenchBot::start(&self.irc, &nick, &config) else {
                continue;
            };
            if bot.wait_until_ready(&self.irc, &middle(size)) {
                pool.bots.push(bot);
                pool.joined.push(joined);
            }
        }
        pool
    }

    /// A bot for one row, at the master of this size; the pools, which learn of builds too, are ended.
    fn bot(&mut self, size: usize, nick: &str, buildbot: &str, irc: &str) -> Option<BenchBot> {
        let url = self.installation(size).master.url();
        let config = self.config(&url, nick, buildbot, irc);
        self.start_bot(size, nick, &config)
    }

    /// The same by way of a proxy.
    fn bot_behind(
        &mut self,
        proxy: &CountingProxy,
        size: usize,
        nick: &str,
        buildbot: &str,
        irc: &str,
    ) -> Option<BenchBot> {
        let config = self.config(&proxy.url(), nick, buildbot, irc);
        self.start_bot(size, nick, &config)
    }

    fn start_bot(&mut self, size: usize, nick: &str, config: &str) -> Option<BenchBot> {
        self.pools.clear();
        let (bot, _) = BenchBot::start(&self.irc, nick, config)?;
        let is_ready = bot.wait_until_ready(&self.irc, &middle(size));
        is_ready.then_some(bot)
    }

    /// Waits until the pace of IRC no longer delays the next line of a bot.
    fn wait_for_pace(&self, nick: &str) {
        let next = self.irc.next_line_allowed(nick);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A builder in the middle of the list.
fn middle(size: usize) -> String {
    format!("b{:05}", size / 2)
}

/// As the values of a row: none was measured, or one.
fn values(value: Option<f64>) -> Vec<f64> {
    value.into_iter().collect()
}
