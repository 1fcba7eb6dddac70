//! Batches for `step`.

use crate::{Input, Raw, check, content};

/// Rows of the golden batch have 9, 1, 5, 2, 7 and 3 tokens in 9 columns.
#[test]
fn batches() {
    check(
        Input::step,
        &[
            content("negative id", &["batch.safetensors", "input_ids", "-1"], |input| {
                input.batch("input_ids", |raw| raw.set_i64(2, -1))
            }),
            content(
                "id outside the vocabulary",
                &["batch.safetensors", "input_ids", "37"],
                |input| input.batch("input_ids", |raw| raw.set_i64(9, 37)),
            ),
            content(
                "id that wraps to a word",
                &["batch.safetensors", "input_ids", "4294967297"],
                |input| input.batch("input_ids", |raw| raw.set_i64(0, (1 << 32) + 1)),
            ),
            content(
                "token type outside the table",
                &["batch.safetensors", "token_type_ids", "2"],
                |input| input.batch("token_type_ids", |raw| raw.set_i64(0, 2)),
            ),
            content(
                "negative token type",
                &["batch.safetensors", "token_type_ids", "-1"],
                |input| input.batch("token_type_ids", |raw| raw.set_i64(0, -1)),
            ),
            content("label C", &["batch.safetensors", "labels.topic", "5"], |input| {
                input.batch("labels.topic", |raw| raw.set_i64(0, 5))
            }),
            content("label -1", &["batch.safetensors", "labels.topic", "-1"], |input| {
                input.batch("labels.topic", |raw| raw.set_i64(1, -1))
            }),
            content("label -7", &["batch.safetensors", "labels.sentiment", "-7"], |input| {
                input.batch("labels.sentiment", |raw| raw.set_i64(5, -7))
            }),
            content("mask with a hole", &["batch.safetensors", "attention_mask"], |input| {
                input.batch("attention_mask", |raw| raw.set_i64(3, 0))
            }),
            content("mask that begins with 0", &["batch.safetensors", "attention_mask"], |input| {
                input.batch("attention_mask", |raw| raw.set_i64(18, 0))
            }),
            content("mask row of zeros", &["batch.safetensors", "attention_mask"], |input| {
                input.batch("attention_mask", |raw| raw.set_i64(9, 0))
            }),
            content("mask of 2", &["batch.safetensors", "attention_mask", "2"], |input| {
                input.batch("attention_mask", |raw| raw.set_i64(0, 2))
            }),
            content(
                "mask of other shape",
                &["batch.safetensors", "attention_mask", "[6, 8]", "[6, 9]"],
                |input| {
                    input.batch("attention_mask", |raw| *raw = Raw::i64(&[6, 8], &[1; 48]));
                },
            ),
            content(
                "token types of other shape",
                &["batch.safetensors", "token_type_ids", "[9, 6]", "[6, 9]"],
                |input| input.batch("token_type_ids", |raw| raw.shape = vec![9, 6]),
            ),
            content("ids without rows", &["batch.safetensors", "input_ids", "[54]"], |input| {
                input.batch("input_ids", |raw| raw.shape = vec![54])
            }),
            content("no sequence", &["batch.safetensors", "input_ids"], |input| {
                input.tensors("batch.safetensors", |file| {
                    for (name, raw) in file {
                        let shape = if name.starts_with("labels") { vec![0] } else { vec![0, 9] };
                        *raw = Raw::i64(&shape, &[]);
                    }
                })
            }),
            content(
                "sequence longer than the position table",
                &["batch.safetensors", "12", "11"],
                |input| {
                    input.tensors("batch.safetensors", |file| {
                        for name in ["input_ids", "attention_mask", "token_type_ids"] {
                            file.insert(name.to_owned(), Raw::i64(&[6, 12], &[1; 72]));
                        }
                    })
                },
            ),
            content("no ids", &["batch.safetensors", "input_ids"], |input| {
                input.tensors("batch.safetensors", |file| _ = file.remove("input_ids"));
            }),
            content("no mask", &["batch.safetensors", "attention_mask"], |input| {
                input.tensors("batch.safetensors", |file| _ = file.remove("attention_mask"));
            }),
            content("no labels for a task", &["batch.safetensors", "labels.sentiment"], |input| {
                input.tensors("batch.safetensors", |file| _ = file.remove("labels.sentiment"));
            }),
            content(
                "labels of other length",
                &["batch.safetensors", "labels.topic", "5", "6"],
                |input| input.batch("labels.topic", |raw| *raw = Raw::i64(&[5], &[0; 5])),
            ),
            content("ids as floats", &["batch.safetensors", "input_ids", "F32|float32"], |input| {
                input.batch("input_ids", |raw| *raw = Raw::f32(&[6, 9], &[1.0; 54]))
            }),
            content(
                "labels as floats",
                &["batch.safetensors", "labels.topic", "F32|float32"],
                |input| input.batch("labels.topic", |raw| *raw = Raw::f32(&[6], &[1.0; 6])),
            ),
        ],
    );
}
