//! How the tensor-core attention kernels share out a batch: sequences of up to 128 tokens go into tiles,
//! several in one, longer ones into blocks of 64 rows (`kernels/attention_tile.cu`,
//! `kernels/attention_long.cu`).

use crate::plan::Capacity;

/// Rows of a strip, which one warp works on.
const STRIP_ROWS: usize = 16;
/// Strips of a tile.
const TILE_STRIPS: usize = 8;
/// Tokens of the longest sequence that a tile holds.
pub(super) const TILE_TOKENS: usize = TILE_STRIPS * STRIP_ROWS;
/// Rows of a block of a longer sequence.
const BLOCK_ROWS: usize = 64;

/// Integers that a tile takes in the list: four for each of its strips.
pub(super) const TILE_WORDS: usize = 4 * TILE_STRIPS;
/// Integers that a block takes in the list.
pub(super) const BLOCK_WORDS: usize = 2;

/// Tiles at most, at any batch within a capacity.
///
/// [`pack`] opens a tile only for a sequence that fits into no other. Of two tiles that are at most half
/// full the second would therefore not be there: all tiles but one have 5 strips or more. Sequences
/// take at most `(T + 15 B) / 16` strips.
pub(super) fn max_tiles(capacity: Capacity) -> usize {
    let Capacity { tokens, sequences, .. } = capacity;
    let n_strips = (tokens + (STRIP_ROWS - 1) * sequences) / STRIP_ROWS;
    let n_half_full = n_strips.saturating_sub(1) / (TILE_STRIPS / 2 + 1);
    (n_half_full + 1).min(sequences)
}

/// Blocks of longer sequences at most, at any batch within a capacity: each such sequence has 129 tokens
/// or more, and a last block with as little as one row.
pub(super) fn max_blocks(capacity: Capacity) -> usize {
    let Capacity { tokens, sequences, max_length } = capacity;
    if max_length <= TILE_TOKENS {
        return 0;
    }
    let n_sequences = sequences.min(tokens / (TILE_TOKENS + 1));
    (tokens + (BLOCK_ROWS - 1) * n_sequences) / BLOCK_ROWS
}

/// The strips of all tiles, eight a tile, each
/// `[sequence, its first token, number of the strip in it, its length]`; an empty strip has length 0.
///
/// A sequence goes to the tile with the least room that is enough.
pub(super) fn pack(cu_seqlens: &[i32]) -> Vec<i32> {
    let mut list = Vec::new();
    // Tiles by the strips that they have left.
    let mut tiles_with_room: [Vec<usize>; TILE_STRIPS + 1] = Default::default();
    for (sequence, start, length) in sequences(cu_seqlens) {
        let n_strips = length.div_ceil(STRIP_ROWS);
        if n_strips > TILE_STRIPS {
            continue;
        }
        let found = (n_strips..=TILE_STRIPS)
            .find_map(|room| tiles_with_room[room].pop().map(|tile| (tile, room)));
        let (tile, room) = found.unwrap_or_else(|| {
            list.resize(list.len() + TILE_WORDS, 0);
            (list.len() / TILE_WORDS - 1, TILE_STRIPS)
        });
        let first = tile * TILE_STRIPS + TILE_STRIPS - room;
        for number in 0..n_strips {
            let strip = [sequence as i32, start, number as i32, length as i32];
            list[4 * (first + number)..][..4].copy_from_slice(&strip);
        }
        tiles_with_room[room - n_strips].push(tile);
    }
    list
}

/// The blocks of the sequences that no tile holds, each `[sequence, number of the block in it]`.
pub(super) fn blocks(cu_seqlens: &[i32]) -> Vec<i32> {
    sequences(cu_seqlens)
        .filter(|(_, _, length)| *length > TILE_TOKENS)
        .flat_map(|(sequence, _, length)| {
            (0..length.div_ceil(BLOCK_ROWS)).flat_map(move |block| [sequence as i32, block as i32])
        })
        .collect()
}

/// Number, first token and length of each sequence.
fn sequences(cu_seqlens: &[i32]) -> impl Iterator<Item = (usize, i32, usize)> + '_ {
    let ends = cu_seqlens.windows(2).enumerate();
    ends.map(|(sequence, ends)| (sequence, ends[0], (ends[1] - ends[0]) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::philox;

    fn cu_seqlens(lengths: &[usize]) -> Vec<i32> {
        let mut ends = vec![0];
        for &length in lengths {
            ends.push(ends[ends.len() - 1] + length as i32);
        }
        ends
    }

    #[test]
    fn sequences_fill_the_tile_with_the_least_room_that_is_enough() {
        // 3, 6, 1 and 2 strips; 130 tokens are too many.
        let list = pack(&cu_seqlens(&[40, 96, 130, 1, 17]));
        let strips: Vec<&[i32]> = list.chunks(4).collect();
        assert_eq!(strips.len(), 2 * TILE_STRIPS);
        assert_eq!(strips[..3], [[0, 0, 0, 40], [0, 0, 1, 40], [0, 0, 2, 40]]);
        assert_eq!(strips[3..5], [[4, 267, 0, 17], [4, 267, 1, 17]]);
        assert!(strips[5..8].iter().all(|strip| strip[3] == 0));
        assert!(strips[8..14].iter().all(|strip| strip[0] == 1 && strip[3] == 96));
        assert_eq!(strips[13][2], 5);
        assert_eq!(strips[14], [3, 266, 0, 1]);
        assert_eq!(strips[15][3], 0);
    }

    #[test]
    fn longer_sequences_are_cut_into_blocks() {
        assert_eq!(
            blocks(&cu_seqlens(&[128, 129, 3, 193])),
            [1, 0, 1, 1, 1, 2, 3, 0, 3, 1, 3, 2, 3, 3]
        );
    }

    /// Every strip once, whole and in order; and no more tiles and blocks than the capacity says.
    fn check(lengths: &[usize]) {
        let ends = cu_seqlens(lengths);
        let (tiles, long_blocks) = (pack(&ends), blocks(&ends));
        let capacity = Capacity {
            tokens: lengths.iter().sum(),
            sequences: lengths.len(),
            max_length: lengths.iter().copied().max().unwrap_or(0),
        };
        assert!(tiles.len() / TILE_WORDS <= max_tiles(capacity), "{lengths:?}");
        assert!(long_blocks.len() / BLOCK_WORDS <= max_blocks(capacity), "{lengths:?}");
        let mut n_seen = vec![0; lengths.len()];
        for tile in tiles.chunks(TILE_WORDS) {
            let mut before = None;
            for strip in tile.chunks(4).filter(|strip| strip[3] > 0) {
                let (sequence, number) = (strip[0] as usize, strip[2]);
                assert_eq!((strip[1], strip[3]), (ends[sequence], lengths[sequence] as i32));
                assert!(number == 0 || before == Some((sequence, number - 1)), "{tile:?}");
                before = Some((sequence, number));
                n_seen[sequence] += 1;
            }
        }
        for (&length, n_seen) in lengths.iter().zip(n_seen) {
            let expected = if length <= TILE_TOKENS { length.div_ceil(STRIP_ROWS) } else { 0 };
            assert_eq!(n_seen, expected, "{lengths:?}");
        }
    }

    #[test]
    fn nothing_is_lost_and_the_capacity_suffices() {
        // What the bound is made of: sequences that share no tile.
        check(&[65; 20]);
        check(&[1]);
        check(&[129; 7]);
        for trial in 0..200 {
            let draw = |i: u32| philox([7, 0], [trial, i, 0, 0]);
            let n_sequences = 1 + draw(0)[0] % 40;
            let longest = [20, 80, 128, 300][trial as usize % 4];
            let lengths: Vec<usize> =
                (1..=n_sequences).map(|i| 1 + draw(i)[0] as usize % longest).collect();
            check(&lengths);
        }
    }
}
