//! Nobody waits for somebody else: how quick the bot is for one while others ask for what is slow, all at once.

use super::{ANNOUNCING, Bench, middle, seconds};
use crate::subjects::{CountingProxy, Installation};
use crate::{Row, ms, quantile};

const SIZE: usize = 10_000;
const NICK: &str = "isolated";
const ROUNDS: usize = 5;
const TOGETHER: usize = 5;
const PATTERNS: usize = 40;
const CTCP_ASKERS: usize = 60;

/// Milliseconds, a value a round.
#[derive(Default)]
struct Times {
    pong: Vec<f64>,
    question: Vec<f64>,
    news: Vec<f64>,
}

/// 40 hostile patterns, 60 CTCP askers, a `status all` in private, a master of which every tenth answer stalls, and a
/// failed build whose changes never come: what that costs the server's PING, a channel's question and another builder's
/// news, against the same without it.
pub fn isolation(bench: &mut Bench) -> Vec<Row> {
    let calm_proxy = CountingProxy::start(bench.installation(SIZE).master.port);
    let calm = measure(bench, &calm_proxy, false);
    let hostile_proxy = CountingProxy::start_hostile(bench.installation(SIZE).master.port);
    let attacked = measure(bench, &hostile_proxy, true);
    let row = |what: &str, attacked: Vec<f64>, calm: &[f64]| {
        let note = format!("{:.2} ms without the attack", quantile(calm, 0.5));
        Row::new("isolation", what, SIZE, "ms", attacked).note(note)
    };
    let calm_news = quantile(&calm.news, 0.95);
    vec![
        row("attacked: PING → PONG", attacked.pong, &calm.pong)
            .aim("p95 ≤ 100", |r| r.p95() <= 100.0),
        row(
            "attacked: a channel's question → first line",
            attacked.question,
            &calm.question,
        )
        .aim("p95 ≤ 2000", |r| r.p95() <= 2000.0),
        row(
            "attacked: another builder's end → line",
            attacked.news,
            &calm.news,
        )
        .aim("p95 ≤ calm + 1000", |r| r.p95() <= calm_news + 1000.0),
    ]
}

fn measure(bench: &mut Bench, proxy: &CountingProxy, is_attacked: bool) -> Times {
    let mut times = Times::default();
    for round in 0..ROUNDS {
        // A new one each time: what an attack leaves waiting takes minutes.
        let Some(_bot) = bench.bot_behind(proxy, SIZE, NICK, "timeout = 5", ANNOUNCING) else {
            continue;
        };
        bench.wait_for_pace(NICK);
        if is_attacked {
            attack(bench, round);
        }
        times.pong.extend(pong(bench));
        times.question.extend(question(bench));
        let installation = &bench.installations[&SIZE];
        times.news.extend(news(bench, installation, round));
    }
    times
}

fn attack(bench: &Bench, round: usize) {
    let pattern = "*a".repeat(200);
    for n in 0..PATTERNS {
        let line = format!(":p{round}x{n}!u@lab PRIVMSG {NICK} :status {pattern}");
        bench.irc.send(NICK, &line);
    }
    for n in 0..CTCP_ASKERS {
        let line = format!(":c{round}x{n}!u@lab PRIVMSG {NICK} :\u{1}VERSION\u{1}");
        bench.irc.send(NICK, &line);
    }
    let line = format!(":reader{round}!u@lab PRIVMSG {NICK} :status all");
    bench.irc.send(NICK, &line);
}

/// From the server's PING to the PONG.
fn pong(bench: &Bench) -> Option<f64> {
    let before = bench.irc.count();
    let asked = bench.irc.send(NICK, "PING :isolation");
    let answer = bench.irc.wait(before, seconds(60), |message| {
        message.nick == NICK && message.command == "PONG"
    })?;
    Some(ms(answer.at - asked))
}

/// From a question in the channel to the first line of its answer.
fn question(bench: &Bench) -> Option<f64> {
    let before = bench.irc.count();
    let asked = bench.irc.say(NICK, &format!("status {}", middle(SIZE)));
    let answer = bench.irc.wait(before, seconds(60), |message| {
        message.nick == NICK && message.target == "#bench"
    })?;
    Some(ms(answer.at - asked))
}

/// Five builds end, of which the simulator has the last one fail: from the end of the first to its line in the channel.
fn news(bench: &Bench, installation: &Installation, round: usize) -> Option<f64> {
    let before = bench.irc.count();
    let first = 300 + TOGETHER * round;
    installation.simulate(&installation.builders[first..first + TOGETHER], 0);
    let ends = installation.ends();
    let (_, _, ended) = *ends.get(ends.len() - TOGETHER)?;
    let name = format!("b{:05}", first + 1);
    let line = bench.irc.wait(before, seconds(60), |message| {
        message.nick == NICK && message.target == "#bench" && message.text.contains(&name)
    })?;
    Some(ms(line.wall.duration_since(ended).unwrap_or_default()))
}
