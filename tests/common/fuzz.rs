//! A mutating fuzzer for the unit tests of the parsers: short within `cargo test`, and as long as
//! `$FUZZ_SECONDS` says for each target under `make fuzz`.

use std::time::{Duration, Instant};

/// Rounds of one target where no time is given.
const ROUNDS: u64 = 20_000;
/// Inputs that are mutated on, and the longest of them.
const POOL: usize = 64;
const LONGEST: usize = 4096;
/// Bytes that mean something to one of the parsers.
const TELLING: &[u8] =
    b"\r\n\0 :;,=@#!*?\\\"'[]{}()\t\x01\x02\x03\x0f\x1b\x7f\x80\xbf\xc3\xe2\xf0\xff0159afx-+%/";

/// Shows the input that the target has panicked on.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// Xorshift: the same inputs each time, from here on.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

/// Calls the target with mutations of good input, which are mutated on.
pub fn fuzz(seeds: &[&[u8]], mut target: impl FnMut(&[u8], &mut Random)) {
    let seconds = std::env::var("FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let (start, mut random, mut rounds) = (Instant::now(), Random(0x2545_f491_4f6c_dd1d), 0);
    let mut pool: Vec<Vec<u8>> = seeds.iter().map(|s| s.to_vec()).collect();
    while seconds.map_or(rounds < ROUNDS, |s| {
        start.elapsed() < Duration::from_secs(s)
    }) {
        rounds += 1;
        let mut input = pool[random.below(pool.len())].clone();
        for _ in 0..=random.below(6) {
            mutate(&mut input, &pool, &mut random);
        }
        input.truncate(LONGEST);
        let shown = Shown(&input);
        target(&input, &mut random);
        drop(shown);
        match random.below(8) {
            0 if pool.len() < POOL => pool.push(input),
            0 => {
                // The seeds themselves stay.
                let at = seeds.len() + random.below(POOL - seeds.len());
                pool[at] = input;
            }
            _ => {}
        }
    }
    if let Some(seconds) = seconds {
        let name = std::thread::current().name().unwrap_or("").to_owned();
        println!("{name}: {rounds} inputs in {seconds} s");
    }
}

fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = at + random.below(16).min(input.len() - at);
    match random.below(7) {
        0 if at < input.len() => input[at] = random.below(256) as u8,
        1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 => input.insert(at, TELLING[random.below(TELLING.len())]),
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
