//! How close texts are to general English, by their words and by how the tokenizer splits them.
//!
//! An encoder knows the words well that its tokenizer keeps whole: they were common where it was trained. Words in
//! many pieces are of another vocabulary, which the embeddings and lower layers may have to learn.
//!
//! # What is a word
//!
//! A run of letters and digits, with the accents on them. The endings of English contractions (`n't`, `'s`, `'ll`,
//! `'m`, `'re`, `'ve`, `'d`) are left out, as in the counts of the reference; any other apostrophe divides two words.
//! Scripts without spaces make words of whole clauses: their figures say little, and the coverage says that the
//! reference does not apply.
//!
//! Words with a digit are counted apart: no list of words holds codes and numbers, so that they would count as
//! missing from it however plain the text is.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::Result;
use crate::data::{Split, Tokenizer};
use crate::measure::stats::quantile;

/// Words and their frequencies; its head says where they are from.
const GENERAL_ENGLISH: &str = include_str!("general_english.tsv");

/// Below this share of the reference's own coverage (0.85) a text is not English, or of a vocabulary of its own.
/// English of one field stays above it (0.63 of the words in titles of diseases, 0.59 in names of phenotypes); other
/// languages, below 0.25, do not.
const LEAST_COVERAGE: f64 = 0.5;

/// Words that a profile lists as lacking from the reference.
const LISTED_WORDS: usize = 10;

/// What follows the apostrophe in English contractions; `t` only after an n.
const ENDINGS: [&str; 7] = ["s", "t", "d", "m", "ll", "re", "ve"];

/// Words of texts and lengths in tokens, beside the words of general English.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextProfile {
    /// Examples; the two texts of a pair are one.
    pub rows: usize,
    /// Running words without a digit.
    pub running_words: usize,
    /// Of these the different ones, capital and small letters being the same.
    pub distinct_words: usize,
    /// How running words without a digit are split; none without such words.
    pub fragmentation: Option<Fragmentation>,
    /// The share of running words without a digit that the reference has; none without such words.
    pub coverage: Option<f64>,
    /// The commonest words that the reference lacks, in small letters.
    pub lacking: Vec<WordCount>,
    /// Running words with a digit: numbers, codes, dates.
    pub running_words_with_digits: usize,
    /// How these are split.
    pub fragmentation_with_digits: Option<Fragmentation>,
    pub reference: ReferenceProfile,
    /// Whether comparing with the reference means anything: the coverage is at least half of the reference's own.
    pub reference_applies: bool,
    /// None without rows.
    pub lengths: Option<LengthProfile>,
}

/// General English under the same tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReferenceProfile {
    /// Words in the list.
    pub words: usize,
    /// The share of the running words of general English that are in the list. The others are rare words and names.
    pub coverage: f64,
    /// How the words of the list are split, each as often as it stands in general English. The running words that
    /// are not in the list would raise it.
    pub fragmentation: Fragmentation,
}

/// How a tokenizer splits running words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fragmentation {
    /// Mean number of tokens of a word: its fertility (Rust et al., "How Good is Your Tokenizer?", ACL 2021). A word
    /// that becomes one unknown token counts one.
    pub subwords_per_word: f64,
    /// The share of words in two or more tokens (Rust et al., as above).
    pub continued_share: f64,
    /// The share of words with an unknown token.
    pub unknown_share: f64,
}

/// A word and how often it stands in the texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WordCount {
    pub word: String,
    pub count: usize,
}

/// Lengths of rows in tokens, special ones included, as they are trained on: cut at the maximum length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LengthProfile {
    pub mean: f64,
    pub median: f64,
    /// The 95th percentile.
    pub percentile_95: f64,
    pub longest: usize,
    /// The share of rows that lost tokens to the maximum length.
    pub cut_share: f64,
}

impl TextProfile {
    /// Profiles all texts of a split under the tokenizer that made its tokens.
    ///
    /// # Errors
    /// [`Error::Content`](crate::Error::Content) if the tokenizer fails on a word.
    pub fn new(split: &Split, tokenizer: &Tokenizer) -> Result<Self> {
        let (mut plain, mut with_digits) = (HashMap::new(), HashMap::new());
        for example in 0..split.len() {
            let (text, pair) = split.text(example);
            for text in [Some(text), pair].into_iter().flatten() {
                for_each_word(text, |word| {
                    let has_digit = word.chars().any(char::is_numeric);
                    let counts = if has_digit { &mut with_digits } else { &mut plain };
                    *counts.entry(word).or_insert(0_usize) += 1;
                });
            }
        }
        let reference = Reference::general_english();
        let mut folded: HashMap<String, usize> = HashMap::new();
        for (word, count) in &plain {
            *folded.entry(word.to_lowercase()).or_default() += count;
        }
        let distinct_words = folded.len();
        let running_words: usize = plain.values().sum();
        let mut lacking: Vec<WordCount> = (folded.into_iter())
            .filter(|(word, _)| !reference.has(word))
            .map(|(word, count)| WordCount { word, count })
            .collect();
        let n_lacking: usize = lacking.iter().map(|lacking| lacking.count).sum();
        lacking
            .sort_unstable_by(|a, b| (Reverse(a.count), &a.word).cmp(&(Reverse(b.count), &b.word)));
        lacking.truncate(LISTED_WORDS);
        let coverage = (running_words > 0).then(|| 1.0 - n_lacking as f64 / running_words as f64);

        let reference = reference.profile(tokenizer)?;
        let least = LEAST_COVERAGE * reference.coverage;
        Ok(Self {
            rows: split.len(),
            running_words,
            distinct_words,
            fragmentation: Fragmentation::new(&weighted(&plain), tokenizer)?,
            coverage,
            lacking,
            running_words_with_digits: with_digits.values().sum(),
            fragmentation_with_digits: Fragmentation::new(&weighted(&with_digits), tokenizer)?,
            reference,
            reference_applies: coverage.is_some_and(|coverage| coverage >= least),
            lengths: LengthProfile::new(split)?,
        })
    }
}

fn weighted<'a>(counts: &HashMap<&'a str, usize>) -> Vec<(&'a str, f64)> {
    counts.iter().map(|(word, count)| (*word, *count as f64)).collect()
}

impl Fragmentation {
    /// Of words, each as often as its weight says; none if the weights are 0 in all.
    fn new(words: &[(&str, f64)], tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let alone: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let (mut all, mut tokens, mut continued, mut unknown) = (0.0, 0.0, 0.0, 0.0);
        // Sums of whole numbers are exact in any order.
        for (split, (_, weight)) in tokenizer.split_words(&alone)?.into_iter().zip(words) {
            all += weight;
            tokens += weight * split.n_tokens as f64;
            continued += weight * f64::from(u8::from(split.n_tokens > 1));
            unknown += weight * f64::from(u8::from(split.has_unknown));
        }
        Ok((all > 0.0).then(|| Self {
            subwords_per_word: tokens / all,
            continued_share: continued / all,
            unknown_share: unknown / all,
        }))
    }
}

impl LengthProfile {
    fn new(split: &Split) -> Result<Option<Self>> {
        let lengths = split.lengths();
        let Some(&longest) = lengths.iter().max() else { return Ok(None) };
        let lengths: Vec<f64> = lengths.into_iter().map(|length| length as f64).collect();
        let rows = lengths.len() as f64;
        Ok(Some(Self {
            mean: lengths.iter().sum::<f64>() / rows,
            median: quantile(&lengths, 0.5)?,
            percentile_95: quantile(&lengths, 0.95)?,
            longest,
            cut_share: split.n_truncated() as f64 / rows,
        }))
    }
}

/// Words of general text.
struct Reference {
    /// With their numbers a million running words, the commonest first.
    words: Vec<(&'static str, f64)>,
    known: HashSet<&'static str>,
}

impl Reference {
    fn general_english() -> Self {
        let lines = GENERAL_ENGLISH.lines().filter(|line| !line.starts_with('#'));
        let words: Vec<(&str, f64)> = lines
            .filter_map(|line| {
                let (word, per_million) = line.split_once('\t')?;
                Some((word, per_million.parse().ok()?))
            })
            .collect();
        let known = words.iter().map(|(word, _)| *word).collect();
        Self { words, known }
    }

    fn has(&self, word: &str) -> bool {
        self.known.contains(word)
    }

    fn profile(&self, tokenizer: &Tokenizer) -> Result<ReferenceProfile> {
        let per_million: f64 = self.words.iter().map(|(_, per_million)| per_million).sum();
        let fragmentation = Fragmentation::new(&self.words, tokenizer)?;
        let fragmentation = fragmentation.expect("the list that is built in has words");
        let (words, coverage) = (self.words.len(), per_million / 1e6);
        Ok(ReferenceProfile { words, coverage, fragmentation })
    }
}

/// Visits the words of a text in order: see the module's description.
fn for_each_word<'a>(text: &'a str, mut visit: impl FnMut(&'a str)) {
    let is_accent = |c: char| ('\u{300}'..='\u{36f}').contains(&c);
    let (mut rest, mut held) = (text, None);
    while let Some(start) = rest.find(char::is_alphanumeric) {
        let (between, tail) = rest.split_at(start);
        let end = tail.find(|c: char| !c.is_alphanumeric() && !is_accent(c)).unwrap_or(tail.len());
        let (word, tail) = tail.split_at(end);
        rest = tail;
        if matches!(between, "'" | "’")
            && let Some(stem) = held.and_then(|held| without_ending(held, word))
        {
            held = Some(stem);
        } else if let Some(before) = held.replace(word) {
            visit(before);
        }
    }
    held.into_iter().for_each(visit);
}

/// What precedes the ending if `before` and `after` an apostrophe are a contraction.
fn without_ending<'a>(before: &'a str, after: &str) -> Option<&'a str> {
    let is_ending = ENDINGS.iter().any(|ending| after.eq_ignore_ascii_case(ending));
    if after.eq_ignore_ascii_case("t") {
        before.strip_suffix(['n', 'N']).filter(|stem| !stem.is_empty())
    } else {
        is_ending.then_some(before)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;
    use crate::batch::PositionScheme;
    use crate::data::{Corpus, Dataset, Example, TaskInfo, TokenRules};

    /// A tokenizer of the BERT kind with nine tokens.
    const WORD_PIECE: &str = r###"{"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "lowercase": true,
                       "handle_chinese_chars": true, "strip_accents": null},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100,
                  "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "the": 4, "cat": 5,
                            "un": 6, "##cat": 7, "##s": 8}}}"###;

    /// A text, the second one of a pair, and a class for every task.
    pub(in crate::advise) type Row<'a> = (&'a str, Option<&'a str>, &'a [Option<u32>]);

    /// Rows of one text or two, each with its class for every task, tokenised by [`WORD_PIECE`]. Task 0 is `t0`, its
    /// class 1 `c1`, and so on.
    pub(in crate::advise) fn corpus(
        n_classes: &[usize],
        [train, eval]: [&[Row]; 2],
        max_length: usize,
    ) -> (Corpus, Tokenizer) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), WORD_PIECE).unwrap();
        let example = |(text, pair, labels): &Row| Example {
            text: (*text).to_owned(),
            pair: pair.map(str::to_owned),
            labels: labels.to_vec(),
            source: 0,
        };
        let task = |(task, n): (usize, &usize)| TaskInfo {
            name: format!("t{task}"),
            labels: (0..*n).map(|class| format!("c{class}")).collect(),
            path: format!("rows{task}.csv").into(),
        };
        let dataset = Dataset {
            tasks: n_classes.iter().enumerate().map(task).collect(),
            train: train.iter().map(example).collect(),
            eval: eval.iter().map(example).collect(),
            sources: Vec::new(),
        };
        let positions = PositionScheme::FromZero;
        let rules = TokenRules { vocab_size: 9, max_length, type_vocab_size: 2, positions };
        let corpus = Corpus::new(dataset, folder.path(), rules, |_| ()).unwrap();
        (corpus, Tokenizer::open(folder.path()).unwrap())
    }

    fn profile(rows: &[(&str, Option<&str>)], max_length: usize) -> TextProfile {
        let rows: Vec<_> = rows.iter().map(|(text, pair)| (*text, *pair, &[Some(0)][..])).collect();
        let (corpus, tokenizer) = corpus(&[2], [&rows, &[]], max_length);
        TextProfile::new(&corpus.train, &tokenizer).unwrap()
    }

    fn words(text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        for_each_word(text, |word| words.push(word));
        words
    }

    #[test]
    fn words_of_texts() {
        assert_eq!(
            words("The cat, a dog_and 2 I-95s!"),
            ["The", "cat", "a", "dog", "and", "2", "I", "95s"]
        );
        assert_eq!(words("cafe\u{301}s \u{301} naïve"), ["cafe\u{301}s", "naïve"]);
        assert_eq!(words("сегодня, 今天天气很好。 Straße"), ["сегодня", "今天天气很好", "Straße"]);
        assert!(words("").is_empty() && words("🙂 ... '").is_empty());
    }

    #[test]
    fn contractions_lose_their_endings() {
        assert_eq!(words("I don't; it's DIDN'T we’ll."), ["I", "do", "it", "DID", "we"]);
        assert_eq!(words("y'all'd've can't"), ["y", "all", "ca"]);
        // No contractions: other words, a space between, a quotation.
        assert_eq!(words("o'clock d'un 'tis"), ["o", "clock", "d", "un", "tis"]);
        assert_eq!(words("dogs' s n't 's it't"), ["dogs", "s", "n", "t", "s", "it", "t"]);
    }

    #[test]
    fn the_reference_is_what_its_head_says() {
        let reference = Reference::general_english();
        let lines = GENERAL_ENGLISH.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!((reference.words.len(), reference.known.len(), lines), (9_997, 9_997, 9_997));
        assert!(reference.words.windows(2).all(|pair| pair[0].1 >= pair[1].1 && pair[1].1 > 0.0));
        assert!(reference.words.iter().all(|(word, _)| word.to_lowercase() == *word));
        let of_all: f64 = reference.words.iter().map(|(_, per_million)| per_million / 1e6).sum();
        // 197,866,675,703 words less `o'clock` and `ma'am`, of 233,062,342,942; three decimals are kept.
        assert!((of_all - 0.8489).abs() < 1e-4, "{of_all}");
        assert!(GENERAL_ENGLISH.contains("CC BY 3.0"));
    }

    #[test]
    fn a_profile_counted_by_hand() {
        let pair = ("uncats don't 7 zz", Some("cat 12"));
        let profile = profile(&[("The cat the unicorn", None), pair, ("zz the", None)], 7);
        assert_eq!((profile.rows, profile.running_words, profile.distinct_words), (3, 10, 6));
        // `the` three times, `cat` twice, `uncats` in three pieces; `unicorn`, `do` and twice `zz` are unknown.
        let split = profile.fragmentation.unwrap();
        assert_eq!(split.subwords_per_word, 1.2);
        assert_eq!((split.continued_share, split.unknown_share), (0.1, 0.4));
        assert_eq!(profile.running_words_with_digits, 2);
        assert_eq!(profile.fragmentation_with_digits.unwrap().unknown_share, 1.0);
        let lacking: Vec<_> = profile.lacking.iter().map(|w| (w.word.as_str(), w.count)).collect();
        assert_eq!(lacking, [("zz", 2), ("uncats", 1), ("unicorn", 1)]);
        assert_eq!(profile.coverage, Some(0.6));
        assert!(profile.reference_applies);
        let lengths = profile.lengths.unwrap();
        assert_eq!((lengths.longest, lengths.median, lengths.cut_share), (7, 6.0, 1.0 / 3.0));
        assert!((lengths.mean - 17.0 / 3.0).abs() < 1e-12, "one division's rounding");

        let reference = profile.reference;
        assert_eq!(reference.words, 9_997);
        // Of its words this vocabulary has `the` (58,424 in 848,990) and `cat`, and `cats` is unknown.
        assert!((reference.fragmentation.unknown_share - 0.93).abs() < 0.01, "{reference:?}");
        assert_eq!(serde_json::to_value(&profile).unwrap()["lacking"][0]["word"], "zz");
    }

    #[test]
    fn other_languages_are_not_the_reference() {
        let samples = [
            "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung \
             aller staatlichen Gewalt. Das Deutsche Volk bekennt sich darum zu Menschenrechten.",
            "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
            "Все люди рождаются свободными и равными в своем достоинстве и правах.",
            "🙂🙂 ...",
        ];
        for sample in samples {
            let profile = profile(&[(sample, None), ("12", None)], 512);
            assert!(!profile.reference_applies, "{profile:?}");
            assert!(profile.coverage.unwrap_or(0.0) < 0.25, "{profile:?}");
            assert_eq!(profile.fragmentation.is_none(), sample.starts_with('🙂'));
            let shares = profile.fragmentation.into_iter().chain(profile.fragmentation_with_digits);
            for split in shares {
                assert!(split.subwords_per_word >= 1.0 && split.unknown_share <= 1.0, "{split:?}");
            }
        }
    }

    #[test]
    fn no_rows_at_all() {
        let (corpus, tokenizer) = corpus(&[2], [&[("the", None, &[Some(0)])], &[]], 8);
        let empty = TextProfile::new(&corpus.eval, &tokenizer).unwrap();
        assert_eq!((empty.rows, empty.running_words, empty.coverage), (0, 0, None));
        assert!(
            empty.lengths.is_none() && empty.fragmentation.is_none() && empty.lacking.is_empty()
        );
    }
}
