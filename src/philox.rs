//! Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011). The same counter gives the same bits on every backend, so that a dropout
//! mask is computed again in the backward pass and never stored.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// 128 random bits for a 128-bit `counter` under a 64-bit `key`.
#[inline(always)]
pub fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// [`philox`] of N counters at once, word by word: `counters[w][lane]`. Written so that a loop over the
/// lanes becomes vector code.
#[inline(always)]
pub fn philox_lanes<const N: usize>(
    mut key: [u32; 2],
    mut counters: [[u32; N]; 4],
) -> [[u32; N]; 4] {
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = counters;
        for lane in 0..N {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(c0[lane]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(c2[lane]);
            counters[0][lane] = (b >> 32) as u32 ^ c1[lane] ^ key[0];
            counters[1][lane] = b as u32;
            counters[2][lane] = (a >> 32) as u32 ^ c3[lane] ^ key[1];
            counters[3][lane] = a as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counters
}

/// Splits a 64-bit seed into a key.
pub fn key_of(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// `n` draws from the normal distribution with mean 0, for the initial values of a tensor.
///
/// `stream` separates the tensors of one model; the draws depend on nothing else.
pub fn normal(seed: u64, stream: u32, n: usize, std: f32) -> Vec<f32> {
    let mut values = Vec::with_capacity(n + 3);
    let mut block = 0u32;
    while values.len() < n {
        let bits = philox(key_of(seed), [block, stream, 0, 0x494E_4954]);
        for pair in bits.as_chunks::<2>().0 {
            // Box-Muller; the half keeps the logarithm's argument above zero.
            let uniform = |b: u32| (f64::from(b) + 0.5) / 4_294_967_296.0;
            let radius = (-2.0 * uniform(pair[0]).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * uniform(pair[1])).sin_cos();
            values.push((radius * cos) as f32 * std);
            values.push((radius * sin) as f32 * std);
        }
        block += 1;
    }
    values.truncate(n);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors that Random123 ships for philox4x32 with 10 rounds.
    #[test]
    fn known_answers() {
        assert_eq!(
            philox([0, 0], [0, 0, 0, 0]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        let ones = u32::MAX;
        assert_eq!(
            philox([ones, ones], [ones; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_are_single_calls() {
        let counters: [[u32; 5]; 4] =
            std::array::from_fn(|w| std::array::from_fn(|lane| (w * 77 + lane * 3) as u32));
        let lanes = philox_lanes([3, 4], counters);
        for lane in 0..5 {
            let single = philox([3, 4], counters.map(|word| word[lane]));
            assert_eq!(lanes.map(|word| word[lane]), single);
        }
    }

    #[test]
    fn normal_has_the_asked_spread_and_streams_differ() {
        let draws = normal(7, 3, 20_001, 0.02);
        let n = draws.len() as f32;
        let mean = draws.iter().sum::<f32>() / n;
        let std = (draws.iter().map(|v| v * v).sum::<f32>() / n).sqrt();
        // Five standard errors of 20,001 draws.
        assert!(mean.abs() <= 7.1e-4, "{mean}");
        assert!((std / 0.02 - 1.0).abs() <= 0.025, "{std}");
        assert_ne!(draws[..8], normal(7, 4, 8, 0.02)[..]);
    }
}
