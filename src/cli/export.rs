//! `frostline export`: a trained model for transformers or sentence-transformers.

use std::path::PathBuf;

use serde_json::json;

use super::output_folder::{Existing, OutputFolder};
use super::{model_folder, print, print_json};
use crate::Result;
use crate::model::export::{Exported, export};
use crate::model::hub::Need;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  frostline export --model trained --head topic --output topic-classifier\n  \
                        frostline export --model trained --output encoder"
)]
pub struct Args {
    /// Folder that frostline train wrote (or its name on the Hugging Face hub); with --output alone also any model
    #[arg(long, value_name = "DIR|NAME")]
    model: PathBuf,
    /// The task whose head goes along; without it the encoder alone
    #[arg(long, value_name = "TASK")]
    head: Option<String>,
    /// Folder to write
    #[arg(long, alias = "output_dir", value_name = "DIR")]
    output: PathBuf,
    /// Replace what an earlier run wrote into the output folder; other files in it stay
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let existing = if args.overwrite { Existing::Overwrite } else { Existing::Refuse };
    let output = OutputFolder::open(&args.output, existing, &[("--model", args.model.clone())])?;
    let model = model_folder::open("--model", &args.model, Need::All)?;
    let mut exported = Exported::SentenceTransformer;
    output.place(|dir| {
        exported = export(dir, &model, args.head.as_deref())?;
        Ok(())
    })?;
    let folder = args.output.display();
    if args.json {
        return print_json(&json!({ "output": args.output.to_string_lossy(), "is": exported }));
    }
    let how = match exported {
        Exported::SequenceClassification => {
            format!("AutoModelForSequenceClassification.from_pretrained(\"{folder}\")")
        }
        Exported::HeadOfSentenceTransformer => format!(
            "SentenceTransformer(\"{folder}\").encode(texts), which are the head's logits: no class of \
             transformers has a head on {} pooling of this family; labels are in 2_Dense/labels.json",
            model.pooling.name()
        ),
        Exported::SentenceTransformer => {
            format!("SentenceTransformer(\"{folder}\").encode(texts)")
        }
    };
    print(&format!("wrote {folder}; load it with {how}\n"))
}
