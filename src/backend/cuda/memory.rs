//! Where a plan's buffers lie on the device.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::device::Device;
use crate::Result;
use crate::model::ParamId;
use crate::plan::{BufId, Layout, Plan, Role};
use crate::tensor::{self, DType};

/// One allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub address: u64,
    pub n_bytes: usize,
}

impl Block {
    pub fn new(device: &mut dyn Device, n_bytes: usize) -> Result<Self> {
        Ok(Block { address: device.allocate(n_bytes)?, n_bytes })
    }
}

/// A parameter and what training keeps for it.
#[derive(Debug)]
struct Param {
    dtype: DType,
    value: Block,
    /// The values in f32 while no master exists and `dtype` is narrower: a master starts from them,
    /// never from rounded ones.
    source: Option<Vec<f32>>,
    master: Option<Block>,
    gradient: Option<Block>,
    gradient_sum: Option<Block>,
    moment1: Option<Block>,
    moment2: Option<Block>,
}

/// Everything of a backend that outlives a step.
#[derive(Debug, Default)]
pub(super) struct Memory {
    params: HashMap<ParamId, Param>,
    pub arena: Option<Block>,
    /// The cache of the frozen prefix, or room for a batch's rows of it.
    pub prefix: Option<Block>,
}

impl Memory {
    /// Forgets everything; whoever asks is to release what lies at these addresses.
    pub fn take_addresses(&mut self) -> Vec<u64> {
        let Memory { params, arena, prefix } = std::mem::take(self);
        let of_param = |param: Param| {
            let Param { value, master, gradient, gradient_sum, moment1, moment2, .. } = param;
            [Some(value), master, gradient, gradient_sum, moment1, moment2]
        };
        let blocks = params.into_values().flat_map(of_param).chain([arena, prefix]);
        blocks.flatten().map(|block| block.address).collect()
    }

    /// Bytes that [`Memory::make_room`] would allocate.
    pub fn missing_bytes(&self, plan: &Plan, layout: &Layout) -> usize {
        let missing = |buf: BufId| {
            let buffer = plan.buffer(buf);
            let is_there = |id: ParamId, of: fn(&Param) -> Option<Block>| {
                self.params.get(&id).is_some_and(|param| of(param).is_some())
            };
            let is_there = match buffer.role {
                Role::Master(id) => is_there(id, |param| param.master),
                Role::Gradient(id) => is_there(id, |param| param.gradient),
                Role::GradientSum(id) => is_there(id, |param| param.gradient_sum),
                Role::Moment1(id) => is_there(id, |param| param.moment1),
                Role::Moment2(id) => is_there(id, |param| param.moment2),
                _ => true,
            };
            if is_there { 0 } else { buffer.n_elements(0, 0) * buffer.dtype.size_bytes() }
        };
        let arena = self.arena.map_or(0, |arena| arena.n_bytes);
        let arena = layout.arena_bytes.saturating_sub(arena);
        plan.written().map(missing).sum::<usize>() + arena
    }

    /// Allocates what `plan` needs and does not have: masters from the values, moments of zeros, gradients
    /// and arena of NaN. Says whether the arena moved.
    pub fn make_room(
        &mut self,
        device: &mut dyn Device,
        plan: &Plan,
        layout: &Layout,
    ) -> Result<bool> {
        for buf in plan.written() {
            let n = plan.buffer(buf).n_elements(0, 0);
            let n_bytes = n * size_of::<f32>();
            match plan.buffer(buf).role {
                Role::Gradient(id) => reserve(device, &mut self.param(id).gradient, n_bytes)?,
                Role::GradientSum(id) => {
                    reserve(device, &mut self.param(id).gradient_sum, n_bytes)?;
                }
                Role::Moment1(id) => zeros(device, &mut self.param(id).moment1, n_bytes)?,
                Role::Moment2(id) => zeros(device, &mut self.param(id).moment2, n_bytes)?,
                Role::Master(id) => {
                    let param = self.param(id);
                    if param.master.is_none() {
                        let block = Block::new(device, n_bytes)?;
                        let source = param.source.take().expect("narrow values keep their source");
                        device.upload(bytemuck::cast_slice(&source), block.address)?;
                        param.master = Some(block);
                    }
                }
                _ => {}
            }
        }
        let is_large_enough = |arena: &Block| arena.n_bytes >= layout.arena_bytes;
        if layout.arena_bytes == 0 || self.arena.as_ref().is_some_and(is_large_enough) {
            return Ok(false);
        }
        if let Some(arena) = self.arena.take() {
            device.synchronize()?;
            device.release(arena.address);
        }
        self.arena = Some(Block::new(device, layout.arena_bytes)?);
        Ok(true)
    }

    fn param(&mut self, id: ParamId) -> &mut Param {
        self.params.get_mut(&id).expect("parameters are written before plans are bound")
    }

    /// Sets a parameter, which kernels read as `dtype`.
    pub fn write_value(
        &mut self,
        device: &mut dyn Device,
        id: ParamId,
        dtype: DType,
        values: Vec<f32>,
    ) -> Result<()> {
        if let Entry::Vacant(entry) = self.params.entry(id) {
            let value = Block::new(device, values.len() * dtype.size_bytes())?;
            let param = Param {
                dtype,
                value,
                source: None,
                master: None,
                gradient: None,
                gradient_sum: None,
                moment1: None,
                moment2: None,
            };
            entry.insert(param);
        }
        let param = self.param(id);
        device.upload(&tensor::from_f32(dtype, &values), param.value.address)?;
        match param.master {
            Some(master) => device.upload(bytemuck::cast_slice(&values), master.address)?,
            None => param.source = (dtype != DType::F32).then_some(values),
        }
        Ok(())
    }

    /// A parameter as training sees it: its master where it has one, what it was set to where that is
    /// what the device still holds a rounded copy of.
    pub fn read_value(&self, device: &mut dyn Device, id: ParamId) -> Result<Vec<f32>> {
        let param = &self.params[&id];
        if let Some(master) = param.master {
            return read_f32(device, master);
        }
        let mut bytes = vec![0; param.value.n_bytes];
        device.download(param.value.address, &mut bytes)?;
        // Whoever asks whether a frozen value has changed is told of the device's copy.
        let is_unchanged =
            |source: &&Vec<f32>| tensor::from_f32(param.dtype, source.as_slice()) == bytes;
        match param.source.as_ref().filter(is_unchanged) {
            Some(source) => Ok(source.clone()),
            None => Ok(tensor::to_f32(param.dtype, &bytes)),
        }
    }

    /// Both moments, where something trains the parameter.
    pub fn read_moments(
        &self,
        device: &mut dyn Device,
        id: ParamId,
    ) -> Result<Option<[Vec<f32>; 2]>> {
        let (Some(moment1), Some(moment2)) = (self.params[&id].moment1, self.params[&id].moment2)
        else {
            return Ok(None);
        };
        Ok(Some([read_f32(device, moment1)?, read_f32(device, moment2)?]))
    }

    /// Sets the moments of a parameter for which there is room.
    pub fn write_moments(
        &mut self,
        device: &mut dyn Device,
        id: ParamId,
        moments: [Vec<f32>; 2],
    ) -> Result<()> {
        let param = self.param(id);
        for (slot, values) in [param.moment1, param.moment2].into_iter().zip(moments) {
            let block = slot.expect("room was made for the moments of what a plan trains");
            device.upload(bytemuck::cast_slice(&values), block.address)?;
        }
        Ok(())
    }
}

fn reserve(device: &mut dyn Device, slot: &mut Option<Block>, n_bytes: usize) -> Result<()> {
    if slot.is_none() {
        *slot = Some(Block::new(device, n_bytes)?);
    }
    Ok(())
}

fn zeros(device: &mut dyn Device, slot: &mut Option<Block>, n_bytes: usize) -> Result<()> {
    if slot.is_none() {
        let block = Block::new(device, n_bytes)?;
        device.fill(block.address, 0, n_bytes)?;
        *slot = Some(block);
    }
    Ok(())
}

/// All of a block of f32.
fn read_f32(device: &mut dyn Device, block: Block) -> Result<Vec<f32>> {
    read(device, block.address, DType::F32, block.n_bytes / size_of::<f32>())
}

/// `n` elements from the device, in f32.
pub(super) fn read(
    device: &mut dyn Device,
    address: u64,
    dtype: DType,
    n: usize,
) -> Result<Vec<f32>> {
    let mut bytes = vec![0; n * dtype.size_bytes()];
    device.download(address, &mut bytes)?;
    Ok(tensor::to_f32(dtype, &bytes))
}

/// The addresses of one plan's buffers.
pub(super) struct Addresses<'a> {
    pub memory: &'a Memory,
    pub plan: &'a Plan,
    pub layout: &'a Layout,
}

impl Addresses<'_> {
    /// The address of a buffer that is no input.
    pub fn of(&self, buf: BufId) -> u64 {
        let param = |id: ParamId| &self.memory.params[&id];
        let block = match self.plan.buffer(buf).role {
            Role::Value(id) => Some(param(id).value),
            Role::Master(id) => param(id).master,
            Role::Gradient(id) => param(id).gradient,
            Role::GradientSum(id) => param(id).gradient_sum,
            Role::Moment1(id) => param(id).moment1,
            Role::Moment2(id) => param(id).moment2,
            Role::Transient | Role::Result => {
                let place = self.layout.place(buf).expect("an op's buffers have a place");
                let arena = self.memory.arena.expect("a plan with places has an arena");
                return arena.address + place.offset_bytes as u64;
            }
            Role::Input(_) => unreachable!("inputs lie in a block of their own"),
        };
        block.expect("room was made for all that the plan writes").address
    }
}
