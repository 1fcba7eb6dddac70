//! Element types and the conversions between them. No shapes, no devices.

use half::{bf16, f16};

/// Type of an element as it lies in a file or in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    F16,
    Bf16,
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// The name that `--dtype` and safetensors' readers use, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
        }
    }
}

/// Widens little-endian `bytes` of a floating type to f32, exactly.
///
/// `bytes` need not be aligned: safetensors aligns its header only to 8 bytes.
///
/// # Panics
/// For [`DType::I32`]: callers reject integer weights before they get here.
pub fn to_f32(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => chunks(bytes).map(f32::from_le_bytes).collect(),
        DType::F16 => chunks(bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        DType::Bf16 => chunks(bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        DType::I32 => panic!("integers are not weights"),
    }
}

/// Rounds f32 values (to nearest even) to a floating type, as little-endian bytes.
///
/// # Panics
/// For [`DType::I32`], as [`to_f32`].
pub fn from_f32(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::I32 => panic!("weights are not integers"),
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_floating_type_survives_a_round_trip() {
        let values = [0.0, -1.5, 0.25, 65504.0, -0.0078125];
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let representable = to_f32(dtype, &from_f32(dtype, &values));
            assert_eq!(to_f32(dtype, &from_f32(dtype, &representable)), representable);
            assert_eq!(representable[..3], values[..3], "{}", dtype.name());
        }
    }
}
