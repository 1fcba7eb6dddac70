//! Freeze specs and options.

use std::path::Path;

use crate::{Input, check, content, device, usage};

#[test]
fn freeze_specs() {
    check(
        Input::step,
        &[
            usage("unknown part", &["foo", "backbone"], |input| input.freeze("foo")),
            usage("more layers than there are", &["lower:9", "3"], |input| input.freeze("lower:9")),
            usage("layers that are no number", &["lower:x"], |input| input.freeze("lower:x")),
            usage("negative layers", &["lower:-1"], |input| input.freeze("lower:-1")),
            usage("no number of layers", &["lower"], |input| input.freeze("lower")),
            usage("empty range", &["layers:2..2"], |input| input.freeze("layers:2..2")),
            usage("range backwards", &["layers:2..1"], |input| input.freeze("layers:2..1")),
            usage("range beyond the model", &["layers:1..9", "3"], |input| {
                input.freeze("layers:1..9")
            }),
            usage("unknown head", &["nope", "topic", "sentiment"], |input| {
                input.freeze("head:nope")
            }),
            usage("name that matches nothing", &["name:zzz*"], |input| input.freeze("name:zzz*")),
            usage("keep that matches nothing", &["keep:*zzz"], |input| {
                input.freeze("all+keep:*zzz")
            }),
            usage("empty spec", &["freeze", "empty"], |input| input.freeze("")),
            usage("empty last part", &["none+", "empty"], |input| input.freeze("none+")),
            usage("empty first part", &["+none", "empty"], |input| input.freeze("+none")),
        ],
    );
}

#[test]
fn options() {
    check(
        Input::step,
        &[
            usage("task without number", &["topic", "NAME=|--task"], |input| {
                input.argument("topic=5", "topic")
            }),
            usage("task with a word for a number", &["--task", "topic=five"], |input| {
                input.argument("topic=5", "topic=five")
            }),
            usage("task with no labels", &["--task", "topic", "0"], |input| {
                input.argument("topic=5", "topic=0")
            }),
            usage("task with one label", &["--task", "topic", "1"], |input| {
                input.argument("topic=5", "topic=1")
            }),
            usage("negative rate", &["--learning-rate", "-1", "from 0"], |input| {
                input.options(&["--learning-rate", "-1"])
            }),
            usage("negative number of steps", &["--steps", "-3"], |input| {
                input.options(&["--steps", "-3"])
            }),
            usage("task twice", &["topic", "twice"], |input| {
                input.argument("sentiment=3", "topic=5")
            }),
            content("dump into a folder that is not there", &["absent"], |input| {
                input.argument("out.safetensors", "absent/out.safetensors")
            }),
            content("dump is a folder", &["model"], |input| {
                input.argument("out.safetensors", "model")
            }),
            usage("pooler that is not there", &["pooling", "pooler"], |input| {
                input.argument("mean", "pooler");
                input.weights(|file| file.retain(|name, _| !name.starts_with("pooler.")));
            }),
            usage("unknown pooling", &["pooling", "max"], |input| input.argument("mean", "max")),
            usage("unknown device", &["device", "tpu"], |input| input.argument("cpu", "tpu")),
            usage("bf16 on the CPU", &["dtype", "bf16", "cpu"], |input| {
                input.argument("f32", "bf16")
            }),
            usage("negative learning rate", &["learning-rate", "-1"], |input| {
                input.arguments.push("--learning-rate=-1".to_owned())
            }),
            usage("learning rate NaN", &["learning-rate", "nan"], |input| {
                input.arguments.push("--learning-rate=nan".to_owned())
            }),
            usage("no steps", &["steps", "0"], |input| {
                input.arguments.push("--steps=0".to_owned())
            }),
            usage("unknown option", &["--frieze"], |input| {
                input.arguments.push("--frieze".to_owned())
            }),
        ],
    );
}

#[test]
fn missing_device() {
    if Path::new("/dev/nvidiactl").exists() {
        println!("skipped: a GPU is here");
        return;
    }
    check(Input::step, &[device("no GPU", &["cuda"], |input| input.argument("cpu", "cuda"))]);
}
