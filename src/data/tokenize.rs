//! Texts to token ids, in parallel.
//!
//! The tokenizer file's own wishes about length are not followed: padding is always off, since
//! batches are packed, and texts are cut at the length that the caller asks for.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{TruncationParams, TruncationStrategy};

use crate::{Error, Result};

/// Texts that are tokenized and reported as one piece of work.
const CHUNK: usize = 256;

/// The tokenizer of a model folder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The id that stands for what the vocabulary cannot spell.
    unknown_id: Option<u32>,
    path: PathBuf,
}

/// How a tokenizer splits a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordTokens {
    /// Tokens of the word alone, without special ones. 0 where normalisation leaves nothing of it.
    pub n_tokens: usize,
    /// Whether one of them is the unknown token.
    pub has_unknown: bool,
}

/// What a tokenizer file says about unknown text: the model keeps it to itself.
#[derive(Deserialize)]
struct UnknownFields {
    model: UnknownToken,
}

#[derive(Deserialize)]
struct UnknownToken {
    unk_id: Option<u32>,
    unk_token: Option<String>,
}

/// Token ids of many texts, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    ids: Vec<i32>,
    type_ids: Vec<i32>,
    /// Text `i` owns the tokens `offsets[i]..offsets[i + 1]`.
    offsets: Vec<usize>,
    /// How many texts lost tokens to the maximum length.
    pub n_truncated: usize,
}

impl Encoded {
    #[cfg(test)]
    pub(super) fn from_sequences(sequences: &[Vec<i32>]) -> Self {
        let mut encoded = Encoded::empty();
        for sequence in sequences {
            encoded.ids.extend(sequence);
            encoded.offsets.push(encoded.ids.len());
        }
        encoded.type_ids = vec![0; encoded.ids.len()];
        encoded
    }

    fn empty() -> Self {
        Encoded { ids: Vec::new(), type_ids: Vec::new(), offsets: vec![0], n_truncated: 0 }
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no text at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Token ids and segment ids of text `i`.
    pub fn sequence(&self, i: usize) -> (&[i32], &[i32]) {
        let tokens = self.offsets[i]..self.offsets[i + 1];
        (&self.ids[tokens.clone()], &self.type_ids[tokens])
    }

    /// The highest segment id, 0 without tokens.
    pub fn highest_type_id(&self) -> i32 {
        self.type_ids.iter().copied().max().unwrap_or(0)
    }

    /// Number of tokens of each text, special tokens included; never 0.
    pub fn lengths(&self) -> Vec<usize> {
        self.offsets.windows(2).map(|ends| ends[1] - ends[0]).collect()
    }
}

impl Tokenizer {
    /// Opens `tokenizer.json` in a model folder.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Content`] if it is no tokenizer or draws
    /// tokens at random (BPE dropout).
    pub fn open(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("tokenizer.json");
        let bytes = fs::read(&path).map_err(|error| Error::io(&path, error))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| Error::content(&path, format!("not a valid tokenizer: {error}")))?;
        if let tokenizers::ModelWrapper::BPE(model) = inner.get_model()
            && let Some(dropout) = model.dropout.filter(|&dropout| dropout > 0.0)
        {
            let problem = format!(
                "`model.dropout` is {dropout}, which makes tokens random; expected null or 0"
            );
            return Err(Error::content(&path, problem));
        }
        inner.with_padding(None);
        let fields: UnknownFields = serde_json::from_slice(&bytes)
            .map_err(|error| Error::content(&path, format!("not a valid tokenizer: {error}")))?;
        let UnknownToken { unk_id, unk_token } = fields.model;
        let unknown_id = unk_id.or_else(|| inner.token_to_id(&unk_token?));
        Ok(Tokenizer { inner, unknown_id, path })
    }

    /// Tokenizes single texts as [`Tokenizer::encode_pairs`] does pairs.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_pairs`].
    pub fn encode_all(
        &self,
        texts: &[&str],
        max_length: usize,
        progress: impl Fn(usize) + Sync,
    ) -> Result<Encoded> {
        let texts: Vec<(&str, Option<&str>)> = texts.iter().map(|text| (*text, None)).collect();
        self.encode_pairs(&texts, max_length, progress)
    }

    /// Tokenizes texts, each perhaps with a second one, special tokens included, and cuts them at `max_length`
    /// tokens on the side that the tokenizer file says (the end, if it says nothing), of a pair always the longer
    /// text (transformers' `longest_first`).
    ///
    /// `progress` is called from any thread with the number of texts that were just finished. The
    /// result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Usage`] if `max_length` leaves no room beside the special tokens,
    /// [`Error::Content`] if the tokenizer fails or makes no token of a text.
    pub fn encode_pairs(
        &self,
        texts: &[(&str, Option<&str>)],
        max_length: usize,
        progress: impl Fn(usize) + Sync,
    ) -> Result<Encoded> {
        let tokenizer = self.truncating(max_length)?;
        let chunks: Vec<Result<Encoded>> = texts
            .par_chunks(CHUNK)
            .enumerate()
            .map(|(chunk, texts)| {
                let encoded = self.encode_chunk(&tokenizer, texts, chunk * CHUNK)?;
                progress(texts.len());
                Ok(encoded)
            })
            .collect();
        let mut all = Encoded::empty();
        for chunk in chunks {
            let chunk = chunk?;
            let start = all.ids.len();
            all.ids.extend(chunk.ids);
            all.type_ids.extend(chunk.type_ids);
            all.offsets.extend(chunk.offsets[1..].iter().map(|end| start + end));
            all.n_truncated += chunk.n_truncated;
        }
        Ok(all)
    }

    /// Splits words, each alone but as it stands in running text: behind a space. That makes a difference to
    /// tokenizers that write the space into the word's first token (byte-level BPE, SentencePiece), and the others
    /// drop it.
    ///
    /// The result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Content`] if the tokenizer fails.
    pub fn split_words(&self, words: &[&str]) -> Result<Vec<WordTokens>> {
        let mut tokenizer = self.inner.clone();
        let whole = tokenizer.with_truncation(None);
        whole.map_err(|error| Error::content(&self.path, error.to_string()))?;
        let split = |word: &&str| {
            let encoding = tokenizer.encode_fast(format!(" {word}"), false).map_err(|error| {
                Error::content(&self.path, format!("`{word}` cannot be tokenized: {error}"))
            })?;
            let ids = encoding.get_ids();
            let has_unknown = self.unknown_id.is_some_and(|unknown| ids.contains(&unknown));
            Ok(WordTokens { n_tokens: ids.len(), has_unknown })
        };
        words.par_iter().with_min_len(CHUNK).map(split).collect()
    }

    /// Number of tokens that the tokenizer knows, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Checks that every id the tokenizer can make has a row in a table of `vocab_size`.
    ///
    /// # Errors
    /// [`Error::Content`] that names the token with the highest id.
    pub fn check_ids(&self, vocab_size: usize) -> Result<()> {
        let vocabulary = self.inner.get_vocab(true);
        let highest = vocabulary.iter().map(|(token, &id)| (id, token)).max();
        match highest {
            Some((id, token)) if id as usize >= vocab_size => Err(Error::content(
                &self.path,
                format!(
                    "token `{token}` has id {id}, but the model's vocab_size is {vocab_size}; the \
                     tokenizer belongs to another model"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn truncating(&self, max_length: usize) -> Result<tokenizers::Tokenizer> {
        use tokenizers::PostProcessor;
        let n_special = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        // The library subtracts one from the other without a check.
        if max_length <= n_special {
            return Err(Error::usage(format!(
                "--max-length {max_length} leaves no room for text: the tokenizer adds \
                 {n_special} special tokens"
            )));
        }
        let direction = self.inner.get_truncation().map(|own| own.direction).unwrap_or_default();
        let mut tokenizer = self.inner.clone();
        tokenizer
            .with_truncation(Some(TruncationParams {
                direction,
                max_length,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(|error| Error::content(&self.path, error.to_string()))?;
        Ok(tokenizer)
    }

    /// `first` is the index of the first text, for messages.
    fn encode_chunk(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        texts: &[(&str, Option<&str>)],
        first: usize,
    ) -> Result<Encoded> {
        let mut chunk = Encoded::empty();
        for (i, &(text, pair)) in texts.iter().enumerate() {
            let fault = |problem: String| {
                let excerpt: String = text.chars().take(40).collect();
                let number = first + i + 1;
                Error::content(&self.path, format!("text {number} (`{excerpt}`): {problem}"))
            };
            let encoding = match pair {
                Some(pair) => tokenizer.encode_fast((text, pair), true),
                None => tokenizer.encode_fast(text, true),
            };
            let encoding =
                encoding.map_err(|error| fault(format!("cannot be tokenized: {error}")))?;
            if encoding.is_empty() {
                return Err(fault("the tokenizer makes no token of it".to_owned()));
            }
            // Ids are below 2^31: `check_ids` holds them against a vocabulary that has rows.
            chunk.ids.extend(encoding.get_ids().iter().map(|&id| id as i32));
            chunk.type_ids.extend(encoding.get_type_ids().iter().map(|&id| id as i32));
            chunk.offsets.push(chunk.ids.len());
            chunk.n_truncated += usize::from(!encoding.get_overflowing().is_empty());
        }
        Ok(chunk)
    }
}

/// The longest sequence that a model folder's files ask for: `model_max_length` in
/// `tokenizer_config.json`, `max_seq_length` in `sentence_bert_config.json`, the lesser if both are
/// there. transformers writes 1e30 for "no limit".
///
/// # Errors
/// [`Error::Io`] if a file is there and cannot be read, [`Error::Content`] if it is not JSON or the
/// value is neither null nor a number above 0.
pub fn model_max_length(model_dir: &Path) -> Result<Option<usize>> {
    let tokenizer = length_in(&model_dir.join("tokenizer_config.json"), "model_max_length")?;
    let sentence = length_in(&model_dir.join("sentence_bert_config.json"), "max_seq_length")?;
    Ok(tokenizer.into_iter().chain(sentence).min())
}

fn length_in(path: &Path, field: &str) -> Result<Option<usize>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| Error::io(path, error))?,
    };
    let config: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::content(path, format!("not valid JSON: {error}")))?;
    let value = &config[field];
    if value.is_null() {
        return Ok(None);
    }
    match (value.as_u64(), value.as_f64()) {
        (Some(length), _) if length > 0 => Ok(usize::try_from(length).ok()),
        // Too large for 64 bits: no limit.
        (None, Some(length)) if length >= u64::MAX as f64 => Ok(None),
        _ => Err(Error::content(
            path,
            format!("`{field}` is {value}; expected a whole number above 0 or null"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A tokenizer of whole words that pads and cuts at 4, as published ones do at 128.
    fn word_level(direction: &str) -> String {
        let special = |id: u32, token: &str| {
            format!(
                r#"{{"id": {id}, "content": "{token}", "single_word": false, "lstrip": false,
                     "rstrip": false, "normalized": false, "special": true}}"#
            )
        };
        format!(
            r#"{{"version": "1.0",
              "truncation": {{"direction": "{direction}", "max_length": 4,
                              "strategy": "LongestFirst", "stride": 0}},
              "padding": {{"strategy": {{"Fixed": 4}}, "direction": "Right",
                           "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
                           "pad_token": "[PAD]"}},
              "added_tokens": [{}, {}, {}],
              "normalizer": {{"type": "Lowercase"}},
              "pre_tokenizer": {{"type": "Whitespace"}},
              "post_processor": {{"type": "BertProcessing", "sep": ["[SEP]", 2],
                                  "cls": ["[CLS]", 1]}},
              "decoder": null,
              "model": {{"type": "WordLevel", "unk_token": "[UNK]",
                         "vocab": {{"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4,
                                    "b": 5, "c": 6, "d": 7}}}}}}"#,
            special(0, "[PAD]"),
            special(1, "[CLS]"),
            special(2, "[SEP]")
        )
    }

    fn open(json: &str) -> Result<Tokenizer> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        Tokenizer::open(folder.path())
    }

    fn encode(direction: &str, texts: &[&str], max_length: usize) -> Result<Encoded> {
        open(&word_level(direction)).unwrap().encode_all(texts, max_length, |_| ())
    }

    #[test]
    fn neither_pads_nor_cuts_as_the_file_says() {
        let encoded = encode("Right", &["a", "A b c d a b", "x"], 100).unwrap();
        assert_eq!(encoded.sequence(0), (&[1, 4, 2][..], &[0, 0, 0][..]));
        assert_eq!(encoded.sequence(1).0, [1, 4, 5, 6, 7, 4, 5, 2]);
        assert_eq!(encoded.sequence(2).0, [1, 3, 2]);
        assert_eq!(encoded.lengths(), [3, 8, 3]);
        assert_eq!((encoded.len(), encoded.n_truncated), (3, 0));
    }

    #[test]
    fn cuts_at_the_maximum_length_with_special_tokens() {
        let texts = ["a b c", "a b c d", "a b c d a b c d a b c d"];
        let encoded = encode("Right", &texts, 5).unwrap();
        assert_eq!(encoded.lengths(), [5, 5, 5]);
        assert_eq!(encoded.sequence(1).0, [1, 4, 5, 6, 2]);
        assert_eq!(encoded.n_truncated, 2);
        assert_eq!(encode("Left", &texts, 5).unwrap().sequence(1).0, [1, 5, 6, 7, 2]);
        assert_eq!(encode("Right", &texts, 3).unwrap().lengths(), [3, 3, 3]);
        let error = encode("Right", &texts, 2).unwrap_err();
        assert!(matches!(error, Error::Usage(_)));
        assert!(error.to_string().contains("--max-length 2"), "{error}");
    }

    #[test]
    fn any_number_of_threads_gives_the_same_tokens() {
        let words = ["a", "b", "c", "d", "x"];
        let texts: Vec<String> = (0..3 * CHUNK + 7)
            .map(|i| {
                (0..i % 11 + 1).map(|k| words[(i * 7 + k * k) % 5]).collect::<Vec<_>>().join(" ")
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let tokenizer = open(&word_level("Right")).unwrap();
        let with_threads = |n_threads| {
            let finished = AtomicUsize::new(0);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let count = |n| {
                finished.fetch_add(n, Ordering::Relaxed);
            };
            let encoded = pool.install(|| tokenizer.encode_all(&texts, 8, count)).unwrap();
            assert_eq!(finished.into_inner(), texts.len());
            encoded
        };
        let one = with_threads(1);
        assert_eq!(one, with_threads(2));
        assert_eq!(one.len(), texts.len());
        for (i, &text) in texts.iter().enumerate() {
            let alone = tokenizer.encode_all(&[text], 8, |_| ()).unwrap();
            assert_eq!(one.sequence(i), alone.sequence(0), "text {i}");
        }
    }

    #[test]
    fn no_texts_and_texts_without_tokens() {
        let none = encode("Right", &[], 5).unwrap();
        assert!(none.is_empty() && none.lengths().is_empty());
        let bare = word_level("Right").replace(
            r#""post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2],
                                  "cls": ["[CLS]", 1]}"#,
            r#""post_processor": null"#,
        );
        let error = open(&bare).unwrap().encode_all(&["a", " "], 5, |_| ()).unwrap_err();
        assert!(
            error.to_string().contains("text 2 (` `): the tokenizer makes no token"),
            "{error}"
        );
    }

    #[test]
    fn ids_must_be_in_the_models_vocabulary() {
        let tokenizer = open(&word_level("Right")).unwrap();
        assert_eq!(tokenizer.vocab_size(), 8);
        tokenizer.check_ids(8).unwrap();
        let message = tokenizer.check_ids(7).unwrap_err().to_string();
        assert!(message.contains("token `d` has id 7") && message.contains("is 7"), "{message}");
    }

    fn bare(pre_tokenizer: &str, model: &str) -> String {
        format!(
            r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                 "normalizer": null, "pre_tokenizer": {pre_tokenizer}, "post_processor": null,
                 "decoder": null, "model": {model}}}"#
        )
    }

    /// Checks the numbers of tokens of words, and which have an unknown one.
    fn check_words(json: &str, words: &[&str], n_tokens: &[usize], unknown: &[bool]) {
        let split = open(json).unwrap().split_words(words).unwrap();
        let found: Vec<usize> = split.iter().map(|word| word.n_tokens).collect();
        assert_eq!(found, n_tokens, "{words:?}");
        let found: Vec<bool> = split.iter().map(|word| word.has_unknown).collect();
        assert_eq!(found, unknown, "{words:?}");
    }

    #[test]
    fn words_alone_have_no_special_tokens_and_no_limit() {
        // The file cuts at 4 tokens.
        let words = ["a", "B", "xyz", "a-b-c-d-a", "a b"];
        check_words(
            &word_level("Right"),
            &words,
            &[1, 1, 1, 9, 2],
            &[false, false, true, true, false],
        );
        check_words(&word_level("Right"), &[], &[], &[]);
        let pieces = r###"{"type": "WordPiece", "unk_token": "[UNK]", "max_input_chars_per_word": 9,
            "continuing_subword_prefix": "##", "vocab": {"[UNK]": 0, "un": 1, "##able": 2, "##s": 3}}"###;
        let json = bare(r#"{"type": "BertPreTokenizer"}"#, pieces);
        let words = ["un", "unables", "cat", "unableables"];
        check_words(&json, &words, &[1, 3, 1, 1], &[false, false, true, true]);
    }

    /// What begins with the space is one token, as in running text; without the space it would be two.
    #[test]
    fn words_stand_behind_a_space() {
        let model = r#"{"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "vocab": {"a": 0, "b": 1, "Ġ": 2, "Ġa": 3, "Ġab": 4, "Ã": 5, "¤": 6},
            "merges": ["Ġ a", "Ġa b"]}"#;
        for prefix in [false, true] {
            let bytes = format!(
                r#"{{"type": "ByteLevel", "add_prefix_space": {prefix}, "trim_offsets": true,
                     "use_regex": true}}"#
            );
            let words = ["ab", "a", "b", "ä"];
            check_words(&bare(&bytes, model), &words, &[1, 1, 2, 3], &[false; 4]);
        }
        let model = r#"{"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["▁", -3.0], ["▁ab", -1.0], ["a", -2.0], ["b", -2.0]]}"#;
        let meta = r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                       "split": true}"#;
        let split = r#"{"type": "WhitespaceSplit"}"#;
        let both = format!(r#"{{"type": "Sequence", "pretokenizers": [{split}, {meta}]}}"#);
        for pre_tokenizer in [meta, &both] {
            let words = ["ab", "ba", "z", "az"];
            let unknown = [false, false, true, true];
            check_words(&bare(pre_tokenizer, model), &words, &[1, 3, 2, 3], &unknown);
        }
    }

    #[test]
    fn missing_and_invalid_tokenizers() {
        let error = Tokenizer::open(Path::new("no-such-folder")).err().unwrap();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("tokenizer.json"));
        for json in ["", "{", "{}", "[1]", "{\"model\": {\"type\": \"Telepathy\"}}"] {
            let error = open(json).err().unwrap();
            assert!(matches!(error, Error::Content { .. }), "{json}");
            assert!(error.to_string().contains("not a valid tokenizer"), "{error}");
        }
        let random = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "dropout": 0.1, "unk_token": null,
                      "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": false, "vocab": {"a": 0}, "merges": []}}"#;
        let message = open(random).err().unwrap().to_string();
        assert!(message.contains("`model.dropout` is 0.1"), "{message}");
        assert!(open(&random.replace("0.1,", "null,")).is_ok());
    }

    #[test]
    fn maximum_length_of_the_models_files() {
        let length = |tokenizer: Option<&str>, sentence: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in
                [("tokenizer_config.json", tokenizer), ("sentence_bert_config.json", sentence)]
            {
                if let Some(content) = content {
                    fs::write(folder.path().join(name), content).unwrap();
                }
            }
            model_max_length(folder.path()).map_err(|error| error.to_string())
        };
        let both = r#"{"model_max_length": 512, "max_seq_length": 256}"#;
        let unlimited = r#"{"model_max_length": 1000000000000000019884624838656}"#;
        assert_eq!(length(None, None), Ok(None));
        assert_eq!(length(Some(both), None), Ok(Some(512)));
        assert_eq!(length(Some(both), Some(both)), Ok(Some(256)));
        assert_eq!(length(Some(unlimited), None), Ok(None));
        assert_eq!(length(Some(unlimited), Some(both)), Ok(Some(256)));
        assert_eq!(length(Some("{}"), Some(r#"{"max_seq_length": null}"#)), Ok(None));
        for bad in ["0", "-1", "12.5", "\"512\"", "[]"] {
            let config = format!("{{\"model_max_length\": {bad}}}");
            let message = length(Some(&config), None).unwrap_err();
            assert!(message.contains(&format!("`model_max_length` is {bad}")), "{message}");
        }
        assert!(length(Some("{"), None).unwrap_err().contains("not valid JSON"));
    }
}
