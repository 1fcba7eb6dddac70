//! The generator behind every shuffle and every synthetic batch.
//!
//! SplitMix64 (Steele, Lea and Flood, 2014): a counter in steps of the golden ratio, each value of
//! it scrambled by a bijection. It is small enough to be restated in any language, and a stream is
//! named by its seed alone, so that an order never depends on what was drawn before it.

/// A stream of pseudo-random 64-bit numbers. Not for secrets.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SplitMix64 {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        SplitMix64 { state: seed }
    }

    /// One of many unrelated streams of a seed, for instance one an epoch.
    ///
    /// Seeds and streams count up by one. Each is scrambled in turn, for states a whole step apart
    /// would give the same numbers, shifted by one.
    pub fn stream(seed: u64, stream: u64) -> Self {
        SplitMix64 { state: scramble(scramble(seed.wrapping_add(GOLDEN)) ^ stream) }
    }

    /// The next number, uniform over all of `u64`.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        scramble(self.state)
    }

    /// A number in `0..n`, each equally likely (Lemire's multiplication with rejection).
    ///
    /// # Panics
    /// If `n` is 0: there is no such number.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a number below 0 was asked for");
        let n = n as u64;
        let mut product = u128::from(self.next_u64()) * u128::from(n);
        if (product as u64) < n {
            // The lowest 2^64 mod n products of each result would make it more likely than others.
            let rejected = n.wrapping_neg() % n;
            while (product as u64) < rejected {
                product = u128::from(self.next_u64()) * u128::from(n);
            }
        }
        (product >> 64) as usize
    }

    /// Fisher and Yates: every order is equally likely, as far as 64 bits of state can tell orders
    /// apart.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_published_test_vector() {
        let mut random = SplitMix64::new(1234567);
        let drawn: Vec<u64> = (0..5).map(|_| random.next_u64()).collect();
        let published = [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821,
        ];
        assert_eq!(drawn, published);
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut random = SplitMix64::new(3);
        let mut counts = [0usize; 7];
        for _ in 0..70_000 {
            counts[random.below(7)] += 1;
        }
        // 10,000 each with a standard deviation of 93: 500 is more than five of them.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) <= 500), "{counts:?}");
    }

    #[test]
    fn below_rejects_where_the_range_does_not_divide() {
        // With n = 3 * 2^62 a bare multiplication gives every third number twice as often.
        let n = 3usize << 62;
        let mut random = SplitMix64::new(5);
        let thirds = (0..30_000).filter(|_| random.below(n).is_multiple_of(3)).count();
        // 10,000 expected, standard deviation 82; the bare multiplication gives 15,000.
        assert!(thirds.abs_diff(10_000) <= 500, "{thirds}");
    }

    #[test]
    fn shuffle_makes_every_order_equally_often() {
        let mut counts = std::collections::HashMap::new();
        for stream in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            SplitMix64::stream(11, stream).shuffle(&mut items);
            *counts.entry(items).or_insert(0usize) += 1;
        }
        assert_eq!(counts.len(), 24);
        // 1,000 each with a standard deviation of 31: 160 is five of them.
        assert!(counts.values().all(|&count| count.abs_diff(1_000) <= 160), "{counts:?}");
    }

    #[test]
    fn streams_differ_by_seed_and_by_stream() {
        let first = |seed, stream| SplitMix64::stream(seed, stream).next_u64();
        let drawn: std::collections::HashSet<u64> =
            (0..100).flat_map(|seed| (0..100).map(move |stream| first(seed, stream))).collect();
        assert_eq!(drawn.len(), 10_000);
        assert_eq!(first(1, 2), first(1, 2));
    }
}
