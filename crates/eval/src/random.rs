//! Python's random numbers: the Mersenne Twister MT19937 as CPython's `random.Random` seeds and reads it.
//!
//! Few-shot examples, shuffled choices and haystacks of the reference implementations hang on these numbers, so they are the
//! same here, bit for bit. Nothing else should use them. Source: CPython 3.11, `Modules/_randommodule.c` and `Lib/random.py`;
//! Matsumoto and Nishimura 1998. Test: `cargo test -p kanana-eval random`.

use std::collections::HashSet;

/// Words of state.
const N: usize = 624;
/// The distance of the word that is mixed in.
const M: usize = 397;

/// A `random.Random(seed)`.
#[derive(Clone)]
pub struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// As `random.Random(seed)` with an integer: its words, the least significant first, are the key of `init_by_array`.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key: &[u32] = if high == 0 { &[low] } else { &[low, high] };
        let mut state = [0_u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        // A key has at most two words, so the first pass is always N steps long.
        let (mut i, mut j) = (1, 0);
        for step in 0..2 * N - 1 {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = if step < N {
                let mixed = (state[i] ^ before.wrapping_mul(1_664_525)).wrapping_add(key[j]);
                mixed.wrapping_add(j as u32)
            } else {
                (state[i] ^ before.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32)
            };
            j = (j + 1) % key.len();
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        PythonRandom { state, next: N }
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// In [0, 1), with 53 bits.
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// An integer of `bits` random bits; no more than 64 are given.
    pub fn getrandbits(&mut self, bits: u32) -> u64 {
        match bits.min(64) {
            0 => 0,
            bits @ 1..=32 => u64::from(self.word() >> (32 - bits)),
            bits => {
                let low = u64::from(self.word());
                low | u64::from(self.word() >> (64 - bits)) << 32
            }
        }
    }

    /// Below `n`, as `_randbelow_with_getrandbits`; 0 where `n` is 0.
    pub fn randbelow(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let bits = u64::BITS - n.leading_zeros();
        loop {
            let drawn = self.getrandbits(bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// In [low, high], both included; `low` where `high` is below it (Python raises).
    pub fn randint(&mut self, low: i64, high: i64) -> i64 {
        let span = i128::from(high) - i128::from(low) + 1;
        match u64::try_from(span) {
            Ok(span) => low.wrapping_add(self.randbelow(span) as i64),
            // The whole range has one value more than 64 bits count, and Python draws 65 for it: nobody asks that.
            Err(_) if span > 0 => self.getrandbits(64) as i64,
            Err(_) => low,
        }
    }

    /// One of these; None of none.
    pub fn choice<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            return None;
        }
        from.get(self.randbelow(from.len() as u64) as usize)
    }

    /// In place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.randbelow(i as u64 + 1) as usize);
        }
    }

    /// `k` different indices below `population`, in the order of `random.sample(range(population), k)`; where `k` is more than
    /// there are (Python raises), all of them.
    pub fn sample(&mut self, population: usize, k: usize) -> Vec<usize> {
        let k = k.min(population);
        // Python keeps a list where that is smaller than a set; the two ways draw differently.
        let mut set_size = 21_usize;
        if k > 5 {
            let mut table = 4_usize;
            while table < k.saturating_mul(3) {
                table = table.saturating_mul(4);
            }
            set_size = set_size.saturating_add(table);
        }
        if population <= set_size {
            let mut pool: Vec<usize> = (0..population).collect();
            let draw = |i| {
                let j = self.randbelow((population - i) as u64) as usize;
                let drawn = pool[j];
                pool[j] = pool[population - i - 1];
                drawn
            };
            return (0..k).map(draw).collect();
        }
        let mut taken = HashSet::with_capacity(k);
        let mut drawn = Vec::with_capacity(k);
        while drawn.len() < k {
            let j = self.randbelow(population as u64) as usize;
            if taken.insert(j) {
                drawn.push(j);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::golden_rows;
    use serde_json::{Value, json};

    #[test]
    fn numbers_are_cpythons() {
        let Some(rows) = golden_rows("golden_misc/cpython_random.jsonl") else { return };
        assert!(rows.len() >= 40);
        for row in &rows {
            let mut random = PythonRandom::new(row["seed"].as_u64().unwrap());
            let got = if let Some(draws) = row.get("draws") {
                let (n, k) = (row["population"].as_u64().unwrap(), row["k"].as_u64().unwrap());
                let draws = draws.as_array().unwrap().len();
                (0..draws).map(|_| json!(random.sample(n as usize, k as usize))).collect::<Value>()
            } else if row.get("getrandbits32").is_some() {
                (0..8).map(|_| random.getrandbits(32)).collect()
            } else if row.get("random").is_some() {
                (0..8).map(|_| random.random()).collect()
            } else if row.get("shuffle20").is_some() {
                let mut items: Vec<u64> = (0..20).collect();
                random.shuffle(&mut items);
                json!(items)
            } else {
                (0..8).map(|_| random.randint(1_000_000, 9_999_999)).collect()
            };
            let key = |key: &&String| !["seed", "population", "k"].contains(&key.as_str());
            let expected = &row[row.keys().find(key).unwrap()];
            assert_eq!(&got, expected, "{row:?}");
        }
        println!("{} rows", rows.len());
    }

    /// Values of CPython 3.11.
    #[test]
    fn long_seeds_and_long_words() {
        let mut random = PythonRandom::new(u64::MAX);
        assert_eq!(random.getrandbits(64), LONG.0);
        assert_eq!(random.getrandbits(40), LONG.1);
        assert_eq!(random.choice(&[1, 2, 3, 4, 5, 6, 7]), Some(&LONG.2));
    }
    const LONG: (u64, u64, i32) = (4589153898531806846, 680056941120, 2);

    #[test]
    fn nothing_hangs() {
        let mut random = PythonRandom::new(1);
        assert_eq!(random.randbelow(0), 0);
        assert_eq!(random.randint(5, 4), 5);
        assert_eq!(random.choice::<u8>(&[]), None);
        assert_eq!(random.getrandbits(0), 0);
        let mut all = random.sample(3, 9);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
        random.randint(i64::MIN, i64::MAX);
    }
}
