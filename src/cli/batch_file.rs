//! Reads the padded batch that `step` is given, and packs it.

use std::path::Path;

use crate::batch::{Batch, IGNORED_LABEL};
use crate::model::{Network, WeightFile};
use crate::{Error, Result};

/// Reads `input_ids`, `attention_mask`, `token_type_ids` (optional) and `labels.<task>` from a
/// safetensors file. Rows of the mask are one or more 1s, then 0s.
///
/// # Errors
/// A missing tensor, a shape or type that does not fit, a mask with holes, or an id or label out of
/// range; the message names tensor, row and value.
pub fn read(path: &Path, network: &Network) -> Result<Batch> {
    let file = WeightFile::open_file(path)?;
    let wrong = |problem: String| Error::content(path, problem);
    let ids = file.read_i32("input_ids", None)?;
    let shape = match file.shape("input_ids") {
        Some(shape @ [n_rows, length]) if *n_rows > 0 && *length > 0 => shape.to_vec(),
        shape => {
            let shape = shape.unwrap_or_default();
            return Err(wrong(format!("input_ids has shape {shape:?}, expected [B, S]")));
        }
    };
    let (n_rows, length) = (shape[0], shape[1]);
    let mask = file.read_i32("attention_mask", Some(&shape))?;
    let types = match file.contains("token_type_ids") {
        true => file.read_i32("token_type_ids", Some(&shape))?,
        false => vec![0; ids.len()],
    };

    let config = &network.config;
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for row in 0..n_rows {
        let places = row * length..(row + 1) * length;
        let mask = &mask[places.clone()];
        let n_tokens = mask.iter().take_while(|&&m| m == 1).count();
        if let Some(at) = mask[n_tokens..].iter().position(|&m| m != 0) {
            let (col, value) = (n_tokens + at, mask[n_tokens + at]);
            return Err(wrong(format!(
                "attention_mask is {value} in row {row}, column {col}: a row is 1s, then 0s"
            )));
        }
        if n_tokens == 0 {
            return Err(wrong(format!("attention_mask is all 0 in row {row}")));
        }
        if n_tokens > config.max_length() {
            return Err(wrong(format!(
                "attention_mask has {n_tokens} tokens in row {row}, the model reads at most {}",
                config.max_length()
            )));
        }
        let places = places.start..places.start + n_tokens;
        let in_range = |name: &str, values: &[i32], end: usize| {
            let is_valid = |&value: &i32| (0..end as i32).contains(&value);
            match values.iter().position(|value| !is_valid(value)) {
                None => Ok(()),
                Some(col) => Err(wrong(format!(
                    "{name} is {} in row {row}, column {col}: expected 0 to {}",
                    values[col],
                    end - 1
                ))),
            }
        };
        let (ids, types) = (&ids[places.clone()], &types[places]);
        in_range("input_ids", ids, config.vocab_size)?;
        // A family without token types ignores the tensor, as its tokenizer never makes one.
        if config.type_vocab_size > 0 {
            in_range("token_type_ids", types, config.type_vocab_size)?;
        }
        batch.input_ids.extend_from_slice(ids);
        batch.token_type_ids.extend_from_slice(types);
        config.position_scheme().extend(ids, &mut batch.position_ids);
        batch.cu_seqlens.push(batch.input_ids.len() as i32);
    }
    for head in &network.heads {
        let name = format!("labels.{}", head.task);
        let labels = file.read_i32(&name, Some(&[n_rows]))?;
        let is_valid =
            |&label: &i32| label == IGNORED_LABEL || (0..head.n_labels as i32).contains(&label);
        if let Some(row) = labels.iter().position(|label| !is_valid(label)) {
            return Err(wrong(format!(
                "{name} is {} in row {row}: expected 0 to {} or {IGNORED_LABEL}",
                labels[row],
                head.n_labels - 1
            )));
        }
        batch.labels.push(labels);
    }
    Ok(batch)
}
