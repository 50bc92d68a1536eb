//! `make bench`: what the bot costs and how quick it is, measured side by side with Buildbot's own IRC reporter on
//! the same master. Prints a table and writes target/bench.json. `make bench ROWS=commands,memory` measures some.
//!
//! A figure that misses its aim is printed as missed; only what could not be measured is an error.

#[path = "../common/mod.rs"]
mod common;
#[path = "bench/hall.rs"]
mod hall;
#[path = "bench/lab.rs"]
mod lab;
#[path = "bench/rows.rs"]
mod rows;

use serde_json::{Value, json};
use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Milliseconds, the unit of most rows.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What is going on, for whoever waits.
fn tell(text: &str) {
    eprintln!("bench: {text} …");
}

/// One line of the table.
struct Row {
    group: &'static str,
    what: String,
    /// How many builders the master has; 0 where that does not matter.
    size: usize,
    unit: &'static str,
    values: Vec<f64>,
    /// The reporter's values for the same.
    reporter: Vec<f64>,
    aim: String,
    met: Option<bool>,
    note: String,
    more_is_better: bool,
}

impl Row {
    fn new(
        group: &'static str,
        what: &str,
        size: usize,
        unit: &'static str,
        values: Vec<f64>,
    ) -> Row {
        let (what, reporter, aim, note) =
            (what.to_string(), Vec::new(), String::new(), String::new());
        Row {
            group,
            what,
            size,
            unit,
            values,
            reporter,
            aim,
            met: None,
            note,
            more_is_better: false,
        }
    }

    fn beside(mut self, reporter: Vec<f64>) -> Row {
        self.reporter = reporter;
        self
    }

    fn more_is_better(mut self) -> Row {
        self.more_is_better = true;
        self
    }

    /// What should be; a second aim is added to the first, and both must be met.
    fn aim(mut self, aim: &str, met: impl Fn(&Row) -> bool) -> Row {
        self.aim += if self.aim.is_empty() { "" } else { ", " };
        self.aim += aim;
        self.met = Some(self.met.unwrap_or(true) && !self.values.is_empty() && met(&self));
        self
    }

    fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }

    fn median(&self) -> f64 {
        quantile(&self.values, 0.5)
    }

    fn p95(&self) -> f64 {
        quantile(&self.values, 0.95)
    }

    /// How many times better than the reporter's our median is.
    fn ratio(&self) -> f64 {
        let ratio = quantile(&self.reporter, 0.5) / self.median();
        if self.more_is_better {
            1.0 / ratio
        } else {
            ratio
        }
    }

    fn shown(&self) -> String {
        let size = if self.size == 0 {
            String::new()
        } else {
            self.size.to_string()
        };
        let verdict = match self.met {
            _ if self.values.is_empty() => "NOT MEASURED",
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "",
        };
        let ratio = if self.ratio().is_finite() {
            format!("{}x", number(self.ratio()))
        } else {
            String::new()
        };
        let note = if self.note.is_empty() {
            String::new()
        } else {
            format!("  ({})", self.note)
        };
        let (median, p95, beside) = (self.median(), self.p95(), quantile(&self.reporter, 0.5));
        let figures = format!(
            "{:>9} {:>9} {:<7} {:>9} {ratio:>8}",
            number(median),
            number(p95),
            self.unit,
            number(beside)
        );
        format!(
            "{:<46} {size:>6} {figures}  {:<16} {verdict}{note}",
            self.what, self.aim
        )
    }

    fn json(&self) -> Value {
        let figures = |values: &[f64]| match values.is_empty() {
            true => Value::Null,
            false => {
                json!({"n": values.len(), "median": quantile(values, 0.5), "p95": quantile(values, 0.95)})
            }
        };
        let ratio = Some(self.ratio()).filter(|ratio| ratio.is_finite());
        json!({
            "group": self.group, "what": self.what, "builders": self.size, "unit": self.unit,
            "bot": figures(&self.values), "reporter": figures(&self.reporter), "ratio": ratio,
            "aim": self.aim, "met": self.met, "note": self.note,
        })
    }
}

/// The nearest rank; not a number where there are no values.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value {
        _ if !value.is_finite() => "-".to_string(),
        _ if value.fract() == 0.0 || value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Writes what there is so far: a later row that ends in a panic must not cost the earlier ones.
fn write(rows: &[Row]) {
    let ask = |program: &str, args: &[&str]| {
        lab::output(Command::new(program).args(args)).unwrap_or_default()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_matches([' ', '\t', ':']);
    let machine = json!({
        "cpu": cpu, "cores": std::thread::available_parallelism().map_or(0, |cores| cores.get()),
        "kernel": ask("uname", &["-sr"]), "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    });
    let all: Vec<Value> = rows.iter().map(Row::json).collect();
    let report = json!({"commit": ask("git", &["describe", "--always", "--dirty"]), "machine": machine, "rows": all});
    let text = serde_json::to_string_pretty(&report).expect("plain values");
    fs::write(common::root().join("target/bench.json"), text + "\n")
        .expect("target can be written");
}

fn main() -> ExitCode {
    let wanted = std::env::var("ROWS").unwrap_or_default();
    let wanted: Vec<&str> = wanted
        .split([',', ' '])
        .filter(|name| !name.is_empty())
        .collect();
    if let Some(wrong) = wanted
        .iter()
        .find(|name| rows::GROUPS.iter().all(|group| group.0 != **name))
    {
        let known: Vec<&str> = rows::GROUPS.iter().map(|group| group.0).collect();
        eprintln!("bench: no rows {wrong}; there are {}", known.join(","));
        return ExitCode::from(64);
    }
    let [size, median, p95, unit, reporter, ratio] =
        ["size", "median", "p95", "", "reporter", "ratio"];
    println!(
        "{:<48} {size:>6} {median:>9} {p95:>9} {unit:<7} {reporter:>9} {ratio:>8}  aim",
        ""
    );
    let (mut stage, from) = (rows::Stage::new(), Instant::now());
    let mut all: Vec<Row> = Vec::new();
    for (name, measure) in rows::GROUPS {
        if wanted.is_empty() || wanted.contains(&name) {
            println!("{name}, after {} s", from.elapsed().as_secs());
            let rows = measure(&mut stage);
            rows.iter().for_each(|row| println!("  {}", row.shown()));
            all.extend(rows);
            write(&all);
        }
    }
    let missed = all
        .iter()
        .filter(|row| row.met == Some(false) && !row.values.is_empty())
        .count();
    let unmeasured = all.iter().filter(|row| row.values.is_empty()).count();
    let took = from.elapsed().as_secs();
    println!(
        "\n{} rows in {took} s, {missed} missed, {unmeasured} not measured; also in target/bench.json",
        all.len()
    );
    ExitCode::from(u8::from(unmeasured > 0))
}
