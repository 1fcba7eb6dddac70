//! Model folders: config.json and the weights.

use std::fs;

use serde_json::{Map, Value, json};

use crate::{Input, Raw, check, complaint, content, read};

const WORDS: &str = "embeddings.word_embeddings.weight";
const QUERY: &str = "encoder.layer.1.attention.self.query.weight";

#[test]
fn safetensors_files() {
    check(
        Input::step,
        &[
            content("header longer than the file", &["model.safetensors"], |input| {
                input.bytes("model/model.safetensors", |bytes| {
                    let length = bytes.len() as u64;
                    bytes[..8].copy_from_slice(&length.to_le_bytes());
                })
            }),
            content("header of 2^63 bytes", &["model.safetensors"], |input| {
                input.bytes("model/model.safetensors", |bytes| bytes[7] = 0x80)
            }),
            content("header is no JSON", &["model.safetensors"], |input| {
                input.bytes("model/model.safetensors", |bytes| bytes[8..40].fill(b'x'))
            }),
            content("data cut off", &["model.safetensors"], |input| {
                input.bytes("model/model.safetensors", |bytes| bytes.truncate(bytes.len() - 5))
            }),
            content("weights of four bytes", &["model.safetensors"], |input| {
                input.bytes("model/model.safetensors", |bytes| bytes.truncate(4))
            }),
            content("no bytes of weights", &["model.safetensors"], |input| {
                input.bytes("model/model.safetensors", Vec::clear)
            }),
            content("no weights", &["model", "safetensors"], |input| {
                fs::remove_file(input.path("model/model.safetensors")).unwrap()
            }),
            content("no model folder", &["./elsewhere", "no such directory"], |input| {
                input.argument("model", "./elsewhere")
            }),
            content(
                "no model folder, and no model of that name",
                &["--model elsewhere", "no folder", "no-cache", "HF_HUB_OFFLINE"],
                |input| input.argument("model", "elsewhere"),
            ),
            content("batch cut off", &["batch.safetensors"], |input| {
                input.bytes("batch.safetensors", |bytes| bytes.truncate(bytes.len() - 5))
            }),
            content("no batch", &["absent.safetensors"], |input| {
                input.argument("batch.safetensors", "absent.safetensors")
            }),
            content("shard missing", &["model-00002-of-00002.safetensors"], |input| {
                let file = "model-00002-of-00002.safetensors";
                let names = read(&input.path("model/model.safetensors")).into_keys();
                let map: Map<_, _> = names.map(|name| (name, json!(file))).collect();
                let index = json!({"metadata": {}, "weight_map": map}).to_string();
                fs::write(input.path("model/model.safetensors.index.json"), index).unwrap();
                fs::remove_file(input.path("model/model.safetensors")).unwrap();
            }),
        ],
    );
}

#[test]
fn weights() {
    check(
        Input::step,
        &[
            content(
                "table of other width",
                &["model.safetensors", WORDS, "[37, 15]", "[37, 16]"],
                |input| {
                    input.weight(WORDS, |raw| *raw = Raw::f32(&[37, 15], &[0.1; 37 * 15]));
                },
            ),
            content(
                "matrix as vector",
                &["model.safetensors", QUERY, "[256]", "[16, 16]"],
                |input| input.weight(QUERY, |raw| raw.shape = vec![256]),
            ),
            content("unknown dtype", &["model.safetensors", QUERY, "F99"], |input| {
                input.bytes("model/model.safetensors", |bytes| {
                    let start = |text: &[u8], from: usize, bytes: &[u8]| {
                        let mut windows = bytes[from..].windows(text.len());
                        from + windows.position(|window| window == text).unwrap()
                    };
                    let name = start(QUERY.as_bytes(), 0, bytes);
                    let dtype = start(b"F32", name, bytes);
                    bytes[dtype..dtype + 3].copy_from_slice(b"F99");
                })
            }),
            content("integer weights", &["model.safetensors", QUERY, "I64|int64"], |input| {
                input.weight(QUERY, |raw| *raw = Raw::i64(&[16, 16], &[1; 256]))
            }),
            content("tensor missing", &["model", QUERY], |input| {
                input.weights(|file| _ = file.remove(QUERY))
            }),
            content("half a head", &["model", "heads.topic.bias"], |input| {
                input.weights(|file| _ = file.remove("heads.topic.bias"))
            }),
            content("NaN weight", &["model.safetensors", QUERY, "NaN"], |input| {
                input.weight(QUERY, |raw| raw.set_f32(77, f32::NAN))
            }),
            content("infinite weight", &["model.safetensors", WORDS, "inf"], |input| {
                input.weight(WORDS, |raw| raw.set_f32(591, f32::NEG_INFINITY))
            }),
            content(
                "NaN in a head",
                &["model.safetensors", "heads.topic.weight", "NaN"],
                |input| input.weight("heads.topic.weight", |raw| raw.set_f32(0, f32::NAN)),
            ),
            content("head with other labels", &["model.safetensors", "topic", "5", "7"], |input| {
                input.argument("topic=5", "topic=7")
            }),
        ],
    );
}

#[test]
fn config() {
    let required = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    ];
    for field in required {
        let mut input = Input::step();
        input.config(|config| _ = config.remove(field));
        let named = vec!["config.json", field].leak();
        let bad = content(field, named, |_| ());
        assert_eq!(complaint(&bad, &input), None);
    }
    fn set(input: &mut Input, field: &str, value: Value) {
        input.config(|config| _ = config.insert(field.to_owned(), value));
    }
    check(
        Input::step,
        &[
            content("config cut off", &["config.json"], |input| {
                input.bytes("model/config.json", |bytes| bytes.truncate(30))
            }),
            content("config is a list", &["config.json"], |input| {
                fs::write(input.path("model/config.json"), "[1]").unwrap()
            }),
            content("no config", &["config.json"], |input| {
                fs::remove_file(input.path("model/config.json")).unwrap()
            }),
            content(
                "hidden size not divisible by heads",
                &["config.json", "hidden_size|hidden size", "heads", "16", "3"],
                |input| set(input, "num_attention_heads", json!(3)),
            ),
            content("no heads at all", &["config.json", "num_attention_heads", "0"], |input| {
                set(input, "num_attention_heads", json!(0))
            }),
            content("layers as text", &["config.json", "num_hidden_layers", "three"], |input| {
                set(input, "num_hidden_layers", json!("three"))
            }),
            content("negative vocabulary", &["config.json", "vocab_size", "-37"], |input| {
                set(input, "vocab_size", json!(-37))
            }),
            content("vocabulary that no memory holds", &["9007199254740993"], |input| {
                set(input, "vocab_size", json!(9_007_199_254_740_993_u64))
            }),
            content("more layers than the file has", &["model", "encoder.layer.3."], |input| {
                set(input, "num_hidden_layers", json!(4))
            }),
            content("unknown family", &["config.json", "model_type", "t5"], |input| {
                set(input, "model_type", json!("t5"))
            }),
            content("no family", &["config.json", "model_type"], |input| {
                input.config(|config| _ = config.remove("model_type"))
            }),
            content(
                "activation that is not there",
                &["config.json", "hidden_act", "swish"],
                |input| set(input, "hidden_act", json!("swish")),
            ),
            content("epsilon as text", &["config.json", "layer_norm_eps", "small"], |input| {
                set(input, "layer_norm_eps", json!("small"))
            }),
        ],
    );
}
