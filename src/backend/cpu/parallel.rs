//! Work cut into pieces whose size does not depend on the number of threads, so that neither do sums.

use rayon::prelude::*;

/// Elements of a piece: large enough to pay for handing it out, small enough for a core's cache.
const PIECE: usize = 16 * 1024;

/// Rows of a piece for rows of `width` elements, at least one.
pub fn rows_per_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Calls `f(first element, piece)` for pieces of `out`, in parallel.
pub fn for_pieces(out: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    for_each_piece(out.chunks_mut(PIECE).collect(), |piece, out| f(piece * PIECE, out));
}

/// A slice that may be absent, cut into pieces: absent pieces of absent slices.
pub fn optional_pieces(
    slice: Option<&mut [f32]>,
    piece: usize,
    n_pieces: usize,
) -> Vec<Option<&mut [f32]>> {
    match slice {
        Some(slice) => slice.chunks_mut(piece).map(Some).collect(),
        None => std::iter::repeat_with(|| None).take(n_pieces).collect(),
    }
}

/// Calls `f(piece number, piece)` on all pieces, in parallel if there are several.
pub fn for_each_piece<T: Send>(pieces: Vec<T>, f: impl Fn(usize, T) + Sync) {
    // Few pieces are not split further than one by one; a single one stays on this thread.
    let min_len = if pieces.len() == 1 { 2 } else { 1 };
    pieces.into_par_iter().enumerate().with_min_len(min_len).for_each(|(at, piece)| f(at, piece));
}
