"""Reporting checklists, filled where the run knows the answer: TRIPOD+AI (Collins et al. 2024) and CLAIM (2024 update).

Numbers are those of the publications. What an item asks is said here in other words than theirs, in short; authors read
the publication too. An answer says where in the report the item is, and the value; where only a person can know, it
says that the author must state it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from lungkit.study.content import AUTHOR
from lungkit.study.document import Cite, Document, Failure, Paragraph, Section, Table, Text


@dataclass(frozen=True)
class Item:
    """One item. answer: the name of what lungkit.study.answers knows of it; "" where only the author can answer."""

    number: str
    part: str
    asks: str
    answer: str = ""


@dataclass(frozen=True)
class Checklist:
    """A published checklist."""

    name: str  # "TRIPOD+AI"
    key: str  # in lungkit.study.references
    items: tuple[Item, ...]


def _items(rows: str) -> tuple[Item, ...]:
    """Items from lines of "number | part | what it asks | answer"."""
    return tuple(Item(*(cell.strip() for cell in row.split("|"))) for row in rows.strip().splitlines())


TRIPOD_AI = Checklist("TRIPOD+AI", "collins2024", _items("""
1   | Title        | Does the title name the prediction model, the patients and the outcome? | title
2   | Abstract     | Is there an abstract that follows TRIPOD+AI for Abstracts? |
3a  | Background   | What is the clinical question, why a model, and which models exist? | question
3b  | Background   | For which patients and which step of care is the model meant, and who would use it? | population
3c  | Background   | Which health inequalities between groups of people are known here? |
4   | Objectives   | What are the aims: to develop a model, to evaluate one, or both? | goal
5a  | Data         | Where do the data come from, why these, and whom do they represent? | sources
5b  | Data         | From when to when were the data collected? |
6a  | Participants | In which setting, and in how many centres and where? | setting
6b  | Participants | Who could take part, and who could not? | eligibility
6c  | Participants | Which treatments did patients receive, and how was that dealt with? |
7   | Preparation  | How were data preprocessed and checked, and alike for all groups of people? | preparation
8a  | Outcome      | What is predicted, by when, how was it determined, and alike for all groups of people? | outcome
8b  | Outcome      | If people judged the outcome: who were they? |
8c  | Outcome      | Did those who determined the outcome know the predictors? |
9a  | Predictors   | How were the predictors chosen? | predictors
9b  | Predictors   | What are the predictors, how and when are they measured, and by whom unseen? | predictors
9c  | Predictors   | If people judged the predictors: who were they? | no_judgement
10  | Sample size  | How was the number of patients arrived at, for development and evaluation, and is it enough? | size
11  | Missing data | How was missing data handled, and why was data left out? | missing
12a | Analysis     | How were the data used for development and evaluation, and how were they divided? | split
12b | Analysis     | How did predictors enter the model: rescaled, transformed, standardised? | preprocessing
12c | Analysis     | Which kind of model, why, with which steps, settings and internal validation? | model
12d | Analysis     | Were differences between hospitals or countries looked at, and how? | clusters
12e | Analysis     | How are discrimination, calibration and usefulness shown, and models compared? | measures
12f | Analysis     | Was the model updated after the evaluation, such as calibrated again? | updating
12g | Analysis     | For an evaluation: how were the predictions computed? | computed
13  | Imbalance    | If classes were balanced: why, how, and were probabilities calibrated afterwards? | imbalance
14  | Fairness     | What was done for fairness between groups of people, and why? | fairness
15  | Output       | What does the model give, probabilities or classes, and how were thresholds chosen? | output
16  | Differences  | How do development and evaluation data differ (setting, patients, outcome)? | differences
17  | Ethics       | Which committee approved the study, and how was consent given or waived? |
18a | Open science | Who funded the study, and with which part in it? |
18b | Open science | Which competing interests do the authors have? |
18c | Open science | Is there a protocol, and where? | protocol
18d | Open science | Is the study registered, and where? |
18e | Open science | Are the data available, and how? | data_access
18f | Open science | Is the code available, and how? | code
19  | Involvement  | How did patients and the public take part? |
20a | Participants | How many patients entered each step, with and without the outcome? | flow
20b | Participants | Which characteristics do patients have, overall and in each source? | characteristics
20c | Participants | For an evaluation: how are important predictors distributed, next to the development data? |
21  | Development  | How many patients and outcomes are in training, choice and evaluation? | flow
22  | Specification| Is the whole model given, so that others can predict with it? | specification
23a | Performance  | What is the performance, with intervals, also in important subgroups? | performance
23b | Performance  | How does performance differ between hospitals or countries? | clusters
24  | Updating     | What did an update of the model change? | updating
25  | Discussion   | How are the results to be understood, in view of aims and earlier studies? |
26  | Limitations  | What limits the study: sample, overfitting, missing data, bias? | limits
27a | Usability    | What happens if inputs are of poor quality or missing? | inputs
27b | Usability    | What must users do with inputs or output, and what must they know? |
27c | Usability    | What are the next steps, such as generalisability? |
"""))  # fmt: skip

CLAIM = Checklist("CLAIM", "tejani2024", _items("""
1  | Title       | Does the title or abstract name the study as one of AI, and of which kind of AI? | title
2  | Abstract    | Does the abstract sum up design, methods, results and conclusions? |
3  | Introduction| What is the background, and what use is the AI meant for? | question
4  | Introduction| What are the aims and hypotheses? | hypothesis
5  | Design      | Is the study prospective or retrospective? | retrospective
6  | Design      | What is the goal: a new model, exploration, feasibility, non-inferiority? | goal
7  | Data        | Which sources do the data come from? | sources
8  | Data        | Which data were taken in and which were left out? | eligibility
9  | Data        | How were the data preprocessed? | preprocessing
10 | Data        | Which parts of images or of the data were used, such as crops? | subset
11 | Data        | How were the data de-identified? |
12 | Data        | How was missing data handled? | missing
13 | Data        | How were the images acquired: scanners, protocols? |
14 | Reference   | What is the reference standard, in enough detail to repeat it? | outcome
15 | Reference   | Why this reference standard? |
16 | Reference   | Who gave the labels, and with which qualification? |
17 | Reference   | How was the test set labelled? |
18 | Reference   | How much do readers differ, between and within them? |
19 | Partitions  | How were the data assigned to training, validation and test? | split
20 | Partitions  | At which level are the parts disjoint: image, study, patient, institution? | disjoint
21 | Testing     | How was the size of the test set decided? | size
22 | Model       | What is the model, with inputs, outputs and all layers? | model
23 | Model       | Which software and versions were used? | software
24 | Model       | How were the weights initialised? | initial
25 | Training    | How was the model trained: augmentation, settings, number of models? | model
26 | Training    | How was the final model selected? | selected
27 | Training    | Were models combined into an ensemble, and how? | ensemble
28 | Evaluation  | Which measures of performance are used? | measures
29 | Evaluation  | How were significance and uncertainty computed? | uncertainty
30 | Evaluation  | Were robustness or sensitivity analysed? | robustness
31 | Evaluation  | Were decisions explained, how, and was the explanation tested? | explained
32 | Evaluation  | How was the model evaluated on internal data? | internal
33 | Evaluation  | How was the model tested on external data? | external
34 | Evaluation  | Is a clinical trial registered? |
35 | Results     | How many patients and images were taken in and left out (flow)? | flow
36 | Results     | Which demographic and clinical characteristics do the patients of each part have? | characteristics
37 | Results     | How well does the model do, with uncertainty, on each part of the data? | performance
38 | Results     | How good and how precise is it as a diagnostic test? | diagnostic
39 | Results     | Which cases fail, and why? | failures
40 | Discussion  | What limits the study? | limits
41 | Discussion  | What does it mean for practice, and for whom is it meant? |
42 | Other       | Where are the protocol or more technical details? | protocol
43 | Other       | Are software, trained model and data available? | code
44 | Other       | Who funded the study, and with which part in it? |
"""))  # fmt: skip

CHECKLISTS = (TRIPOD_AI, CLAIM)
REPORTED, MISSING = "reported", "author"


def appendix(checklist: Checklist, answers: Mapping[str, Text]) -> Section:
    """A checklist as an appendix of the report."""
    name = _name(checklist)
    filled = sum(item.answer in answers for item in checklist.items)
    intro: Text = (
        f"This table follows the items of {checklist.name}",
        Cite(checklist.key),
        f", in this report's own words. The run answers {filled} of {len(checklist.items)} items, in whole or in "
        "part; a person has to read these answers and to add the others.",
    )
    rows = tuple(
        ((item.number,), (item.part,), (item.asks,), answers.get(item.answer) or (Failure(AUTHOR),))
        for item in checklist.items
    )
    head = ("Item", "Part", "What it asks", "Where it is, and what is known")
    table = Table(name, f"{checklist.name}: {len(checklist.items)} items", head, rows, wide=(2, 3))
    return Section(name, f"{checklist.name} checklist", (Paragraph(intro), table))


def frame(checklist: Checklist, answers: Mapping[str, Text], document: Document) -> pd.DataFrame:
    """A checklist as a table: columns item, part, asks, status (REPORTED or MISSING), answer."""
    rows: Iterable[tuple[str, ...]] = (
        (item.number, item.part, item.asks, REPORTED if item.answer in answers else MISSING,
         document.plain(answers[item.answer]) if item.answer in answers else AUTHOR)
        for item in checklist.items
    )  # fmt: skip
    return pd.DataFrame(rows, columns=["item", "part", "asks", "status", "answer"])


def _name(checklist: Checklist) -> str:
    return f"checklist-{checklist.name.lower().replace('+', '-')}"


def csv_name(checklist: Checklist) -> str:
    """The file of a checklist: "tripod-ai.csv"."""
    return f"{checklist.name.lower().replace('+', '-')}.csv"
