//! How quickly bot and reporter answer commands.

use super::{Bench, SIZES, middle, seconds};
use crate::Row;
use crate::subjects::BenchBot;
use std::thread;
use std::time::{Duration, Instant};

/// Milliseconds; a command that takes the reporter so long is not asked for at ten times the size, nor often.
const LONG: f64 = 3000.0;

/// A read command at one size, and how many samples are wanted of bot and reporter.
struct Question {
    size: usize,
    /// Its place in [`COMMANDS`].
    index: usize,
    text: String,
    bot_samples: usize,
    bot: Vec<f64>,
    reporter_samples: usize,
    reporter: Vec<f64>,
}

const COMMANDS: [&str; 11] = [
    "status ONE",
    "last ONE",
    "version",
    "help status",
    "commands",
    "list workers",
    "list changes",
    "list builders",
    "last all",
    "status all",
    "status",
];
/// From this one on they answer in many lines, after which a bot is paced for long.
const MANY: usize = 6;

pub fn commands(bench: &mut Bench) -> Vec<Row> {
    let mut questions = Vec::new();
    for size in SIZES {
        let bots = bench.pool(size).bots.len();
        for (index, command) in COMMANDS.iter().enumerate() {
            questions.push(Question {
                size,
                index,
                text: command.replace("ONE", &middle(size)),
                bot_samples: 20,
                bot: Vec::new(),
                reporter_samples: if index < MANY { 20 } else { bots.max(3) },
                reporter: Vec::new(),
            });
        }
    }
    crate::progress("asking");
    let is_open = |question: &Question| {
        question.bot.len() < question.bot_samples
            || question.reporter.len() < question.reporter_samples
    };
    while questions.iter().any(is_open) {
        if !ask_bot(bench, &mut questions) && !ask_reporter(bench, &mut questions) {
            thread::sleep(Duration::from_millis(20));
        }
    }
    questions.into_iter().map(row).collect()
}

/// Asks a bot that its pace allows to answer at once; false if there is none. No answer ends the question.
fn ask_bot(bench: &Bench, questions: &mut [Question]) -> bool {
    let now = Instant::now();
    let is_free = |bot: &&BenchBot| bench.irc.next_line_allowed(&bot.nick) <= now;
    for question in questions {
        if question.bot.len() >= question.bot_samples {
            continue;
        }
        let Some(bot) = bench.pools[&question.size].bots.iter().find(is_free) else {
            continue;
        };
        match bench.irc.ask(&bot.nick, &question.text, seconds(20)) {
            Some((took, _)) => question.bot.push(took),
            None => {
                question.bot_samples = 0;
                question.bot.clear();
            }
        }
        return true;
    }
    false
}

/// Asks a reporter the next question; false if there is no more. What takes it long is asked for once only, and not at
/// all at the next size, where it would take minutes.
fn ask_reporter(bench: &Bench, questions: &mut [Question]) -> bool {
    let is_open = |question: &&mut Question| question.reporter.len() < question.reporter_samples;
    let Some(question) = questions.iter_mut().find(is_open) else {
        return false;
    };
    let nick = &bench.installations[&question.size].reporter;
    let size = question.size;
    let index = question.index;
    let answer = bench.irc.ask(nick, &question.text, seconds(180));
    let mut is_long = true;
    if let Some((took, _)) = answer {
        question.reporter.push(took);
        is_long = took > LONG;
    }
    if is_long {
        question.reporter_samples = question.reporter.len();
        for other in questions {
            if other.index == index && other.size > size {
                other.reporter_samples = 0;
            }
        }
    }
    bench.irc.wait_quiet(nick, Duration::from_millis(50));
    true
}

fn row(question: Question) -> Row {
    let command = COMMANDS[question.index];
    let size = question.size;
    let what = format!("{command} → first line");
    let is_silent = question.reporter.is_empty();
    let mut row = Row::new("commands", &what, size, "ms", question.bot);
    row = row.reporter(question.reporter);
    if is_silent {
        row = row.note("the reporter would take minutes");
    }
    // Ten thousand are there to show how costs grow.
    if size > 1000 {
        return row;
    }
    row = row.aim("≤ 0.6", |r| r.median() <= 0.6);
    if command == "status all" && size == 1000 {
        row.aim("≥ 1000x", |r| r.ratio() >= 1000.0)
    } else if command.starts_with("status") || command.starts_with("last") {
        row.aim("≥ 10x", |r| r.ratio() >= 10.0)
    } else {
        row
    }
}
