//! The proof of freezing: what did not train still has the bytes of the file that it came from.

use serde::Serialize;

use crate::model::{ParamId, WeightFile};
use crate::session::Session;
use crate::{Error, Result, tensor};

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FreezeProof {
    /// Frozen tensors that are equal to the file's, byte for byte.
    pub n_tensors: usize,
    /// Their values.
    pub n_values: usize,
}

/// Compares every parameter that is not in `trained` with the file's bytes, or with `initial` where
/// no file holds it and for those in `given`, which started from elsewhere.
///
/// # Errors
/// A frozen tensor that differs.
pub fn prove_frozen(
    session: &mut Session,
    trained: &[ParamId],
    file: Option<&WeightFile>,
    initial: &[Vec<f32>],
    given: &[ParamId],
) -> Result<FreezeProof> {
    let network = session.network().clone();
    let mut proof = FreezeProof::default();
    for id in network.param_ids().filter(|id| !trained.contains(id)) {
        let (param, value) = (network.param(id), session.value(id)?);
        let file = file.filter(|file| file.contains(&param.name) && !given.contains(&id));
        let is_same = match file {
            Some(file) => {
                let dtype = file.dtype(&param.name)?;
                tensor::from_f32(dtype, &value) == file.bytes(&param.name)?
            }
            None => value.iter().map(|v| v.to_bits()).eq(initial[id.0].iter().map(|v| v.to_bits())),
        };
        if !is_same {
            return Err(Error::Run(format!("the frozen tensor {} has changed", param.name)));
        }
        proof.n_tensors += 1;
        proof.n_values += value.len();
    }
    Ok(proof)
}
