//! Host memory, and one op's view of it.

use super::ops::Element;
use crate::batch::Batch;
use crate::model::ParamId;
use crate::plan::{BufId, Input, Layout, Plan, Role, Rows};

/// Parameters by id, and the arena.
pub(super) struct Memory<E> {
    pub values: Vec<Vec<E>>,
    /// Empty for what no bound plan trains; so are the moments.
    pub gradients: Vec<Vec<E>>,
    pub gradient_sums: Vec<Vec<E>>,
    pub moment1: Vec<Vec<E>>,
    pub moment2: Vec<Vec<E>>,
    arena: Vec<E>,
}

impl<E> Default for Memory<E> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            gradients: Vec::new(),
            gradient_sums: Vec::new(),
            moment1: Vec::new(),
            moment2: Vec::new(),
            arena: Vec::new(),
        }
    }
}

/// The arena's unit: layouts count bytes of f32, elements of the reference are wider.
const LAYOUT_ELEMENT_BYTES: usize = size_of::<f32>();

impl<E: Element> Memory<E> {
    /// Bytes that [`Memory::make_room`] would add.
    pub fn missing_bytes(&self, plan: &Plan, layout: &Layout) -> usize {
        let has =
            |storage: &[Vec<E>], id: ParamId| storage.get(id.0).is_some_and(|v| !v.is_empty());
        let missing = |buf: BufId| {
            let buffer = plan.buffer(buf);
            let is_there = match buffer.role {
                Role::Gradient(id) => has(&self.gradients, id),
                Role::GradientSum(id) => has(&self.gradient_sums, id),
                Role::Moment1(id) => has(&self.moment1, id),
                Role::Moment2(id) => has(&self.moment2, id),
                _ => true,
            };
            if is_there { 0 } else { buffer.n_elements(0, 0) }
        };
        let params: usize = plan.written().map(missing).sum();
        let arena = layout.arena_bytes / LAYOUT_ELEMENT_BYTES;
        let arena = if self.arena.len() < arena { arena } else { 0 };
        (params + arena) * size_of::<E>()
    }

    /// Grows storage to what `plan` needs. New gradients and arena are NaN, new moments zero.
    pub fn make_room(&mut self, plan: &Plan, layout: &Layout) {
        for buf in plan.written() {
            let buffer = plan.buffer(buf);
            let n = buffer.n_elements(0, 0);
            match buffer.role {
                Role::Gradient(id) => reserve(&mut self.gradients, id, n, E::NAN),
                Role::GradientSum(id) => reserve(&mut self.gradient_sums, id, n, E::NAN),
                Role::Moment1(id) => reserve(&mut self.moment1, id, n, E::ZERO),
                Role::Moment2(id) => reserve(&mut self.moment2, id, n, E::ZERO),
                _ => {}
            }
        }
        let n_elements = layout.arena_bytes / LAYOUT_ELEMENT_BYTES;
        if self.arena.len() < n_elements {
            // A fresh vector: growing would copy what nobody will read.
            self.arena = Vec::new();
            self.arena = vec![E::NAN; n_elements];
        }
    }

    pub fn set_value(&mut self, param: ParamId, values: Vec<f32>) {
        if self.values.len() <= param.0 {
            self.values.resize_with(param.0 + 1, Vec::new);
        }
        self.values[param.0] = E::from_f32s(values);
    }

    pub fn value(&self, param: ParamId) -> Vec<f32> {
        to_f32s(&self.values[param.0])
    }

    /// A parameter's gradient of one batch, or the sum of several.
    pub fn gradient(&self, plan: &Plan, buf: BufId) -> &[E] {
        match plan.buffer(buf).role {
            Role::Gradient(id) => &self.gradients[id.0],
            Role::GradientSum(id) => &self.gradient_sums[id.0],
            role => unreachable!("{role:?} is no gradient of a parameter"),
        }
    }

    /// Both moments, where something trains the parameter.
    pub fn moments(&self, param: ParamId) -> Option<[Vec<f32>; 2]> {
        let of = |storage: &[Vec<E>]| {
            storage.get(param.0).filter(|values| !values.is_empty()).map(|values| to_f32s(values))
        };
        Some([of(&self.moment1)?, of(&self.moment2)?])
    }

    /// Sets the moments of a parameter for which there is room.
    pub fn set_moments(&mut self, param: ParamId, [moment1, moment2]: [Vec<f32>; 2]) {
        self.moment1[param.0] = E::from_f32s(moment1);
        self.moment2[param.0] = E::from_f32s(moment2);
    }

    pub fn read(
        &self,
        plan: &Plan,
        layout: &Layout,
        buf: BufId,
        (tokens, sequences): (usize, usize),
    ) -> Vec<f32> {
        let buffer = plan.buffer(buf);
        match buffer.role {
            Role::Gradient(id) => to_f32s(&self.gradients[id.0]),
            Role::GradientSum(id) => to_f32s(&self.gradient_sums[id.0]),
            Role::Value(id) => to_f32s(&self.values[id.0]),
            Role::Moment1(id) => to_f32s(&self.moment1[id.0]),
            Role::Moment2(id) => to_f32s(&self.moment2[id.0]),
            _ => match layout.place(buf) {
                Some(place) => {
                    let n = buffer.n_elements(tokens, sequences);
                    to_f32s(&self.arena[place.offset_bytes / LAYOUT_ELEMENT_BYTES..][..n])
                }
                None => Vec::new(),
            },
        }
    }
}

impl<E: Element> Memory<E> {
    /// Sets a buffer that is no input; one that lies nowhere (a master) is left alone.
    pub fn write(&mut self, plan: &Plan, layout: &Layout, buf: BufId, values: Vec<f32>) {
        let values = E::from_f32s(values);
        match plan.buffer(buf).role {
            Role::Value(id) => self.values[id.0] = values,
            Role::Gradient(id) => self.gradients[id.0] = values,
            Role::GradientSum(id) => self.gradient_sums[id.0] = values,
            Role::Moment1(id) => self.moment1[id.0] = values,
            Role::Moment2(id) => self.moment2[id.0] = values,
            _ => {
                if let Some(place) = layout.place(buf) {
                    let start = place.offset_bytes / LAYOUT_ELEMENT_BYTES;
                    self.arena[start..start + values.len()].copy_from_slice(&values);
                }
            }
        }
    }
}

fn reserve<E: Clone>(storage: &mut Vec<Vec<E>>, param: ParamId, n: usize, fill: E) {
    if storage.len() <= param.0 {
        storage.resize_with(param.0 + 1, Vec::new);
    }
    if storage[param.0].len() != n {
        storage[param.0] = vec![fill; n];
    }
}

fn to_f32s<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

/// The buffers of one op: what it reads as shared slices, what it writes as exclusive ones, all cut
/// to the live counts.
pub(super) struct Frame<'a, E> {
    plan: &'a Plan,
    batch: &'a Batch,
    reads: Vec<(BufId, &'a [E])>,
    writes: Vec<(BufId, &'a mut [E])>,
}

impl<'a, E: Element> Frame<'a, E> {
    /// Opens the buffers `reads` and `writes` of one op.
    pub fn open(
        memory: &'a mut Memory<E>,
        (plan, layout): (&'a Plan, &Layout),
        (reads, writes): (&[BufId], &[BufId]),
        batch: &'a Batch,
    ) -> Self {
        let mut frame = Frame { plan, batch, reads: Vec::new(), writes: Vec::new() };
        let mut in_arena: Vec<(usize, usize, BufId, bool)> = Vec::new();
        let mut gradients: Vec<(usize, BufId)> = Vec::new();
        let all = reads.iter().map(|buf| (*buf, false)).chain(writes.iter().map(|b| (*b, true)));
        for (buf, is_write) in all {
            match plan.buffer(buf).role {
                Role::Value(id) => frame.reads.push((buf, &memory.values[id.0])),
                Role::Gradient(id) => gradients.push((id.0, buf)),
                Role::Transient | Role::Result => {
                    if in_arena.iter().any(|(_, _, other, _)| *other == buf) {
                        continue;
                    }
                    // Every transient of an op in the plan has a place: the layout saw the same op.
                    let place = layout.place(buf).expect("a transient of a laid out plan");
                    let n = plan.buffer(buf).n_elements(batch.n_tokens(), batch.n_sequences());
                    in_arena.push((place.offset_bytes / LAYOUT_ELEMENT_BYTES, n, buf, is_write));
                }
                _ => {}
            }
        }
        in_arena.sort_unstable_by_key(|(start, ..)| *start);
        let (mut rest, mut at) = (memory.arena.as_mut_slice(), 0);
        for (start, n, buf, is_write) in in_arena {
            // Buffers of one op live at the same time, so their places are apart.
            let (_, tail) = rest.split_at_mut(start - at);
            let (slice, tail) = tail.split_at_mut(n);
            (rest, at) = (tail, start + n);
            if is_write {
                frame.writes.push((buf, slice));
            } else {
                frame.reads.push((buf, slice));
            }
        }
        gradients.sort_unstable();
        let (mut rest, mut at) = (memory.gradients.as_mut_slice(), 0);
        for (index, buf) in gradients {
            let (gradient, tail) = rest[index - at..].split_first_mut().expect("room was made");
            (rest, at) = (tail, index + 1);
            frame.writes.push((buf, gradient));
        }
        frame
    }

    /// A buffer that the op reads.
    pub fn read(&self, buf: BufId) -> &'a [E] {
        let found = self.reads.iter().find(|(id, _)| *id == buf);
        found.expect("an op's inputs are opened with it").1
    }

    /// Several buffers that the op reads, in order.
    pub fn read_all(&self, bufs: &[BufId]) -> Vec<&'a [E]> {
        bufs.iter().map(|buf| self.read(*buf)).collect()
    }

    /// A buffer that the op writes; each can be taken once.
    pub fn write(&mut self, buf: BufId) -> &'a mut [E] {
        let at = self.writes.iter().position(|(id, _)| *id == buf);
        self.writes.swap_remove(at.expect("an op's outputs are opened with it")).1
    }

    /// An output that pruning may have dropped.
    pub fn write_optional(&mut self, buf: Option<BufId>) -> Option<&'a mut [E]> {
        buf.map(|buf| self.write(buf))
    }

    /// Part of the batch.
    pub fn input(&self, buf: BufId) -> &'a [i32] {
        match self.plan.buffer(buf).role {
            Role::Input(Input::InputIds) => &self.batch.input_ids,
            Role::Input(Input::PositionIds) => &self.batch.position_ids,
            Role::Input(Input::TokenTypeIds) => &self.batch.token_type_ids,
            Role::Input(Input::CuSeqlens) => &self.batch.cu_seqlens,
            Role::Input(Input::Labels(task)) => &self.batch.labels[task],
            Role::Input(Input::PrefixRows) => &self.batch.prefix_rows,
            role => unreachable!("{role:?} is no input"),
        }
    }

    /// The weights that a batch gives its rows.
    pub fn loss_weights(&self, buf: BufId) -> &'a [f32] {
        match self.plan.buffer(buf).role {
            Role::Input(Input::LossWeights(task)) => &self.batch.loss_weights[task],
            role => unreachable!("{role:?} is no weight of rows"),
        }
    }

    /// What the rows of a buffer stand for.
    pub fn rows(&self, buf: BufId) -> Rows {
        self.plan.buffer(buf).rows
    }

    /// Columns of a buffer.
    pub fn cols(&self, buf: BufId) -> usize {
        self.plan.buffer(buf).cols
    }
}
