#!/usr/bin/env python3
"""Makes src/advise/general_english.tsv, the words that texts are compared with.

The counts are those of the Google Books Ngram Corpus (English, version 20200217, books of 2010 to
2019; CC BY 3.0), as gathered and cleaned in github.com/orgtre/google-books-ngram-frequency (CC BY
3.0). Both files that are read must have the sha256 that is written down here, so that the output
is the same bytes each time.

Needs Python 3.9 or later. Run it in the repository's root; only maintainers ever do.
"""

import argparse
import csv
import hashlib
import io
import os
import sys
import urllib.error
import urllib.request

COMMIT = "e20471c15a758be3362b16d07870b34df4f7ccc3"
SOURCE = f"https://raw.githubusercontent.com/orgtre/google-books-ngram-frequency/{COMMIT}"
# Merged over capital and small letters, without names, punctuation and numbers.
CLEANED = (
    "ngrams/1grams_english.csv",
    "f7f63aa08f0bb2f7f654cddff3a7ced4968b27887b2c0e7cd4b4d108221e197d",
)
# As Google counts: also sums over all that has a part of speech, `_NOUN_` for example.
RAW = (
    "ngrams/more/english/1grams_english_0_raw.csv",
    "3c3d337dea591981f073a48ba1bec79427c168cf59267568bf78c4e4c70b8cb0",
)
OUTPUT = os.path.join("src", "advise", "general_english.tsv")

HEADER = """\
# The commonest words of general English and how often each stands among a million running words.
# The frequencies add up to the share of running words that are in this list: its coverage.
# Source: Google Books Ngram Corpus (Google, CC BY 3.0), English, version 20200217, books of 2010
#   to 2019, https://storage.googleapis.com/books/ngrams/books/datasetsv3.html; gathered and cleaned
#   of names, numbers and misprints in https://github.com/orgtre/google-books-ngram-frequency
#   (CC BY 3.0, https://creativecommons.org/licenses/by/3.0/).
# Changed: in small letters, counts as shares. Made by scripts/general_english.py.
"""


def rows(source, file):
    """The pairs of n-gram and count in a file that has the right hash."""
    path, expected = file
    with urllib.request.urlopen(f"{source}/{path}") as answer:
        content = answer.read()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        sys.exit(f"error: {path}: sha256 is {found}, expected {expected}")
    for row in csv.DictReader(io.StringIO(content.decode("utf-8"))):
        yield row["ngram"], int(row["freq"])


def running_words(source):
    """How many tokens of the corpus are words: neither punctuation nor numbers in figures."""
    tags = {}
    spelled_numerals = 0
    for ngram, count in rows(source, RAW):
        if ngram.startswith("_") and ngram.endswith("_") and len(ngram) > 2:
            tags[ngram] = count
        elif ngram.endswith("_NUM") and ngram[:-4].isalpha():
            spelled_numerals += count
    return sum(tags.values()) - tags["_._"] - tags["_NUM_"] + spelled_numerals


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        default=SOURCE,
        metavar="URL",
        help="where the repository's files lie, file:///... for a checkout",
    )
    source = parser.parse_args().source
    try:
        total = running_words(source)
        counts = {}
        for word, count in rows(source, CLEANED):
            # `o'clock` and `ma'am` are two words each where texts are counted.
            if word.isalpha():
                counts[word.lower()] = counts.get(word.lower(), 0) + count
    except urllib.error.URLError as error:
        sys.exit(f"error: {source}: {error.reason}")
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    with open(OUTPUT, "w", encoding="utf-8", newline="\n") as file:
        file.write(HEADER)
        for word, count in ranked:
            file.write(f"{word}\t{1e6 * count / total:.3f}\n")
    coverage = sum(counts.values()) / total
    print(f"{OUTPUT}: {len(ranked)} words, {100 * coverage:.1f} % of {total} running words")


if __name__ == "__main__":
    main()
