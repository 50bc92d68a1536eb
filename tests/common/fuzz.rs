//! A mutating fuzzer for the unit tests of the parsers: short within `cargo test`, and `$FUZZ_SECONDS` long for each
//! target under `make fuzz`.

use std::time::{Duration, Instant};

/// Rounds of one target where no time is given.
const ROUNDS: u64 = 20_000;
/// How many inputs are kept to be mutated again.
const POOL: usize = 64;
/// Inputs are cut to this length.
const MAX_INPUT: usize = 4096;
/// Bytes with a meaning for one of the parsers.
const SPECIAL: &[u8] =
    b"\r\n\0 :;,=@#!*?\\\"'[]{}()\t\x01\x02\x03\x0f\x1b\x7f\x80\xbf\xc3\xe2\xf0\xff0159afx-+%/";

/// Prints the input if the target panics.
struct PrintOnPanic<'a>(&'a [u8]);

impl Drop for PrintOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// Xorshift: the same numbers for the same seed.
#[derive(Default)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

/// Calls the target with mutations of the seeds, some of which are mutated again.
pub fn fuzz(seeds: &[&[u8]], mut target: impl FnMut(&[u8], &mut Random)) {
    let limit = time_limit();
    let start = Instant::now();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut pool: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    let mut rounds = 0;
    loop {
        let done = match limit {
            Some(limit) => start.elapsed() >= limit,
            None => rounds >= ROUNDS,
        };
        if done {
            break;
        }
        rounds += 1;
        let mut input = pool[random.below(pool.len())].clone();
        for _ in 0..=random.below(6) {
            mutate(&mut input, &pool, &mut random);
        }
        input.truncate(MAX_INPUT);
        let printer = PrintOnPanic(&input);
        target(&input, &mut random);
        drop(printer);
        if random.below(8) == 0 {
            keep(input, &mut pool, seeds.len(), &mut random);
        }
    }
    if let Some(limit) = limit {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("");
        println!("{name}: {rounds} inputs in {} s", limit.as_secs());
    }
}

fn time_limit() -> Option<Duration> {
    let seconds = std::env::var("FUZZ_SECONDS").ok()?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// Adds an input to the pool; in a full pool it replaces another, but never a seed.
fn keep(input: Vec<u8>, pool: &mut Vec<Vec<u8>>, seeds: usize, random: &mut Random) {
    if pool.len() < POOL {
        pool.push(input);
    } else {
        let index = seeds + random.below(POOL - seeds);
        pool[index] = input;
    }
}

fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = at + random.below(16).min(input.len() - at);
    match random.below(7) {
        0 if at < input.len() => input[at] = random.below(256) as u8,
        1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 => input.insert(at, SPECIAL[random.below(SPECIAL.len())]),
        3 => drop(input.drain(at..end)),
        4 => {
            let piece = input[at..end].repeat(1 + random.below(4));
            input.splice(at..at, piece);
        }
        5 => {
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            let to = (from + random.below(40)).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
        _ => input.truncate(at),
    }
}
