//! `--config FILE.toml`: options from a file.

use serde_json::Value;

use crate::{ALL_TRAINED, SENTIMENT, TOPIC, Workspace};

fn with_settings(text: &str) -> Workspace {
    let workspace = Workspace::new();
    workspace.write("settings.toml", text);
    workspace
}

#[test]
fn options_come_from_the_file() {
    let workspace = with_settings(
        "model = \"model\"\ntask = [\"topic=5\", \"sentiment=3\"]\nbatch-size = 4\nmax_length = 8\n\
         freeze = \"backbone\"\njson = true\nmax_grad_norm = 0.5\n",
    );
    let plan = workspace.json("plan --config settings.toml");
    assert_eq!(plan["freeze"], "backbone");
    assert_eq!(plan["capacity"]["tokens"], 32);
    assert_eq!(plan["trainable_parameters"], TOPIC + SENTIMENT);
    assert_eq!(workspace.json("plan --config=settings.toml"), plan);
}

#[test]
fn what_is_typed_overrides_it() {
    let workspace = with_settings(
        "model = \"model\"\ntask = [\"topic=5\", \"sentiment=3\"]\nbatch_size = 4\nmax-length = 8\n\
         freeze = \"backbone\"\njson = true\n",
    );
    let plan = workspace.json("plan --freeze none --config settings.toml --batch-size=2");
    assert_eq!((&plan["freeze"], &plan["capacity"]["tokens"]), (&"none".into(), &16.into()));
    // A list that is typed takes the place of the file's; an alias is the same option.
    let plan = workspace
        .json("plan --config settings.toml --task topic=5 --per_device_train_batch_size 3");
    assert_eq!(
        (&plan["trainable_parameters"], &plan["capacity"]["tokens"]),
        (&TOPIC.into(), &24.into())
    );
}

/// An option that cannot stand beside one of the file's takes its place.
#[test]
fn another_model_is_typed() {
    let minilm = with_settings("arch = \"minilm-l6\"\njson = true\n");
    let plan = minilm.json("plan --config settings.toml --model model");
    assert_eq!(plan["trainable_parameters"], ALL_TRAINED - TOPIC - SENTIMENT + 2 * 17);
    let folder = with_settings("model = \"model\"\njson = true\n");
    let plan = folder.json("plan --config settings.toml --arch=minilm-l6");
    assert_eq!(plan, minilm.json("plan --config settings.toml"));
}

/// The names of transformers, in the file and typed.
#[test]
fn aliases() {
    let workspace = with_settings(
        "model = \"model\"\ntask = \"topic=reviews.csv\"\nnum_train_epochs = 1\n\
         per_device_train_batch_size = 15\nlearning_rate = 2e-3\nwarmup_ratio = 0.0\n\
         lr_scheduler_type = \"constant\"\nholdout = 0\noutput_dir = \"trained\"\noverwrite = true\n\
         weight_decay = 0.1\nmax_grad_norm = 0\nseed = 3\njson = true\n",
    );
    let report = workspace.json("train --config settings.toml");
    assert_eq!((&report["output"], &report["steps"]), (&"trained".into(), &3.into()));
    let (steps, _) = crate::train::log(&workspace, "trained");
    for line in &steps {
        assert_eq!(line["learning_rate"], f64::from(2e-3_f32));
        // Without clipping nobody computes the norm.
        assert_eq!(line.get("grad_norm"), None);
    }
    let from_file = std::fs::read(workspace.path("trained/model.safetensors")).unwrap();
    for spelling in [
        "--num_train_epochs 1 --per_device_train_batch_size 15 --learning_rate 2e-3 \
         --warmup_ratio 0 --lr_scheduler_type constant --weight_decay 0.1 --max_grad_norm 0 \
         --output_dir typed",
        "--num-train-epochs 1 --batch-size 15 --learning-rate 2e-3 --warmup-steps 0 \
         --lr-scheduler-type constant --weight-decay 0.1 --max-grad-norm 0 --output typed",
    ] {
        workspace.ok(&format!(
            "train --model model --task topic=reviews.csv --holdout 0 --seed 3 --overwrite {spelling}"
        ));
        let typed = std::fs::read(workspace.path("typed/model.safetensors")).unwrap();
        assert!(typed == from_file, "{spelling}");
    }
}

#[test]
fn flags_that_are_off() {
    let workspace = with_settings("arch = \"minilm-l6\"\njson = false\n");
    let text = workspace.ok("plan --config settings.toml");
    assert!(serde_json::from_str::<Value>(&text).is_err() && text.contains("GFLOP"), "{text}");
}

#[test]
fn every_command_reads_it() {
    let workspace =
        with_settings("model = \"model\"\ntask = [\"topic=5\", \"sentiment=3\"]\njson = true\n");
    workspace.json("bench --config settings.toml --batch-size 2 --max-length 4 --rounds 1");
    workspace.json("step --config settings.toml --batch batch.safetensors --dump out.safetensors");
    assert_eq!(workspace.json("plan --config settings.toml")["trainable_parameters"], ALL_TRAINED);
}

#[test]
fn faults_name_the_file_and_the_key() {
    for (text, status, named) in [
        ("frieze = \"none\"\n", 1, "frieze"),
        ("max_steps = 3\n", 1, "max_steps"),
        ("freeze = [[\"none\"]]\n", 1, "freeze"),
        ("freeze = 1979-05-27\n", 1, "freeze"),
        ("[freeze]\nall = true\n", 1, "freeze"),
        ("freeze = \n", 1, "TOML"),
        ("batch_size = \"many\"\n", 1, "many"),
        ("freeze = true\n", 1, "freeze"),
        ("config = \"other.toml\"\n", 1, "config"),
        ("{\"freeze\": \"none\"}", 1, "TOML"),
    ] {
        let workspace = with_settings(text);
        let run = "plan --arch minilm-l6 --config settings.toml";
        workspace.refused(run, status, &["settings.toml", named]);
    }
    let workspace = with_settings("freeze = \"none\"\n");
    let twice = "plan --arch minilm-l6 --config settings.toml --config settings.toml";
    workspace.refused(twice, 2, &["--config", "twice"]);
    workspace.refused("plan --config absent.toml", 1, &["absent.toml"]);
    workspace.refused("plan --arch minilm-l6 --config", 2, &["--config"]);
}
