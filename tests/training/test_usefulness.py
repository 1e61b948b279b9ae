"""Net benefit against dcurves, predictive values against scikit-learn, and intervals against exact ones."""

import numpy as np
import pytest
import sklearn.metrics as sk

from lungkit.errors import LungkitError
from lungkit.models.card import Measured
from lungkit.models.rule import DecisionRule
from lungkit.training import usefulness
from lungkit.training.evaluation import all_right, evaluate
from lungkit.training.usefulness import at_prevalence, decision_curve, predictive_values

CLASSES = ("Normal", "COVID-19")
RULE = DecisionRule(kind="threshold", positive="COVID-19", threshold=0.5)


def scored(y, scores, patients=None, n_boot=200):
    patients = np.arange(len(y)) if patients is None else patients
    return evaluate(y, np.column_stack([1 - scores, scores]), patients, CLASSES, RULE, n_boot=n_boot)


def published():
    """80 patients whose net benefit dcurves 1.1.7 computed: `dca(data, "y", ["p"], thresholds)`."""
    rng = np.random.default_rng(11)
    y = (rng.random(80) < 0.3).astype(int)
    return y, np.round(1 / (1 + np.exp(-(1.6 * (y - 0.5) - 0.6 + rng.normal(size=80)))), 3)


THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


# --- net benefit


def test_net_benefit_is_that_of_dcurves():
    curve = decision_curve(scored(*published()), thresholds=THRESHOLDS)
    assert curve.table["model"].tolist() == pytest.approx([0.382895, 0.358333, 0.3125, 0.275, 0.2, 0.15], abs=1e-6)
    everybody = [0.381579, 0.347222, 0.265625, 0.160714, 0.020833, -0.175]
    assert curve.table["all"].tolist() == pytest.approx(everybody, abs=1e-6)
    assert (curve.prevalence, curve.fixed) == (33 / 80, False)


def test_net_benefit_at_another_prevalence_is_that_of_dcurves():
    # dca(..., prevalence=0.02) weights the patients and leaves the probabilities as they are
    curve = decision_curve(scored(*published()), thresholds=THRESHOLDS, prevalence=0.02, calibrated_for=0.02)
    model = [-0.029384, -0.070355, -0.106319, -0.108137, -0.152263, -0.134442]
    assert curve.table["model"].tolist() == pytest.approx(model, abs=1e-6)
    assert curve.table["all"].tolist() == pytest.approx(
        [-0.031579, -0.088889, -0.225, -0.4, -0.633333, -0.96], abs=1e-6
    )


def test_the_gain_is_over_the_better_of_calling_all_and_none():
    table = decision_curve(scored(*published())).table
    assert table["gain"].to_numpy() == pytest.approx(table["model"] - np.maximum(table["all"], 0))
    assert (table["gain_low"] <= table["gain"] + 1e-9).all() and (table["gain"] <= table["gain_high"] + 1e-9).all()


def test_standardised_net_benefit_of_a_perfect_model_is_one_at_every_threshold():
    y = np.arange(60) % 3 == 0
    curve = decision_curve(scored(y.astype(int), np.where(y, 0.99, 0.001)))
    assert curve.table["standardised"].to_numpy() == pytest.approx(1)
    assert curve.harmful == []
    ((first, last),) = curve.useful
    # 20 patients who are found show no more than that 83 % are: too little where a missed case weighs much
    assert 0.03 < first < 0.2 and last == 0.5
    assert usefulness.useful_says(curve).endswith(
        f"calling none at thresholds of {first:.0%} to 50%.".replace("%", " %")
    )


def test_a_model_that_answers_the_wrong_way_round_is_called_worse_than_a_default():
    y, scores = published()
    curve = decision_curve(scored(y, 1 - scores))
    assert curve.useful == [] and curve.harmful
    said = usefulness.useful_says(curve)
    assert said.startswith("Where 41 % have COVID-19, at no threshold from 1 % to 50 % is the model shown to be better")
    assert "it is **worse** than the better of these two at thresholds of" in said


def test_copies_of_each_patients_image_add_no_evidence_to_net_benefit():
    y, scores = published()
    once = decision_curve(scored(y, scores)).table
    copied = decision_curve(scored(np.repeat(y, 5), np.repeat(scores, 5), np.repeat(np.arange(80), 5))).table
    assert copied["model"].to_numpy() == pytest.approx(once["model"])
    assert (copied["high"] - copied["low"]).mean() == pytest.approx((once["high"] - once["low"]).mean(), rel=0.05)


@pytest.mark.parametrize(("scores", "right"), [((0.001, 0.99), 1), ((0.99, 0.001), 0)])
@pytest.mark.parametrize("prevalence", [None, 0.02])
def test_answers_without_an_error_have_the_intervals_of_exact_shares(scores, right, prevalence):
    y = np.repeat([0, 1], 12)
    curve = decision_curve(scored(y, np.array(scores)[y], n_boot=2000), prevalence=prevalence, calibrated_for=0.5)
    row, share = curve.at(0.2), 0.5 if prevalence is None else prevalence
    assert row["low"] < row["high"] and row["gain_low"] < row["gain_high"] and row["low"] <= row["model"] <= row["high"]
    if prevalence:  # then the share does not move
        shown = 1 - all_right(
            12
        )  # the errors that 12 patients without one leave open; both kinds go half as far or more
        reach = (share + (1 - share) / 4) * shown
        assert reach / 2 < row["high"] - row["low"] < reach


def test_with_few_patients_there_is_no_verdict():
    for y in (np.repeat([0, 1], 3), np.repeat([0, 1], [100, 9])):
        for scores in (y * 0.9, 0.9 - y * 0.9):
            curve = decision_curve(scored(y, scores))
            assert curve.useful == curve.harmful == []
            said = usefulness.useful_says(curve)
            assert said.startswith("There are too few patients to say") and f"{y.sum()} with COVID-19" in said


def test_a_resample_without_a_class_says_nothing_at_a_given_prevalence():
    without = np.array([[0.0, 0.0, 1.0, 1.0]])
    of = np.array([True, True, False, False]), np.array([0.9, 0.1, 0.1, 0.1]), np.array([0.2])
    given, own = (usefulness._Curve(*of, share) for share in (0.3, None))
    assert np.isnan(given.benefit(given(without))[0, 0])
    assert own.benefit(own(without))[0, 0] == 0, "no one is ill, and no one is called"


def test_where_a_threshold_lies_is_said_in_runs():
    holds = np.array([True, True, False, True, False])
    assert usefulness._runs(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), holds) == [(0.1, 0.2), (0.4, 0.4)]


# --- another prevalence


def test_probabilities_at_another_prevalence_follow_bayes_theorem():
    x = np.linspace(-3, 4, 50)  # of a marker that is normal in the healthy, and normal two higher in the ill
    likelihood = np.exp(2 * x - 2)
    at = {share: share * likelihood / (share * likelihood + 1 - share) for share in (0.4, 0.02)}
    assert at_prevalence(at[0.4], 0.4, 0.02) == pytest.approx(at[0.02])
    assert at_prevalence(at[0.02], 0.02, 0.4) == pytest.approx(at[0.4])
    assert at_prevalence([0.0, 1.0], 0.4, 0.02).tolist() == [0, 1]


def test_a_calibrated_model_is_worth_more_at_a_rare_disease_if_its_probabilities_are_set_to_it():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    x = rng.normal(size=2000) + 2 * y
    measured = scored(y, 1 / (1 + np.exp(-(2 * x - 2))), n_boot=20)
    plain = decision_curve(measured, thresholds=(0.1, 0.2), prevalence=0.02, calibrated_for=0.02)
    corrected = decision_curve(measured, thresholds=(0.1, 0.2), prevalence=0.02, calibrated_for=0.5)
    assert (corrected.table["model"] > plain.table["model"] + 0.005).all()
    assert (corrected.table["model"] > 0).all() and corrected.fixed


def test_the_share_that_probabilities_were_calibrated_for_is_that_of_validation():
    assert usefulness.calibrated_for(Measured(support={"Normal": 30, "COVID-19": 10}), "COVID-19") == 0.25
    assert usefulness.calibrated_for(Measured(support={"Normal": 30}), "COVID-19") is None
    assert usefulness.calibrated_for(None, "COVID-19") is None


# --- predictive values


def test_predictive_values_are_scikit_learns_precision_of_images_weighted_to_the_prevalence():
    y, scores = published()
    values = predictive_values(scored(y, scores), prevalences=[0.02, 0.3])
    for row in values.to_dict("records"):
        weights = np.where(y == 1, row["prevalence"] / y.sum(), (1 - row["prevalence"]) / (1 - y).sum())
        called = scores >= 0.5
        assert row["ppv"] == pytest.approx(sk.precision_score(y, called, sample_weight=weights))
        assert row["npv"] == pytest.approx(sk.precision_score(y, called, sample_weight=weights, pos_label=0))
        assert row["ppv_low"] < row["ppv"] < row["ppv_high"] and row["npv_low"] < row["npv"] < row["npv_high"]


def test_another_threshold_moves_both_values():
    measured = scored(*published())
    low, high = (predictive_values(measured, prevalences=[0.02], threshold=t).iloc[0] for t in (0.2, 0.8))
    assert low["ppv"] < high["ppv"] and low["npv"] > high["npv"]


def test_without_a_false_alarm_the_ppv_reaches_down_as_far_as_the_exact_interval_allows():
    y = np.r_[np.ones(40, int), np.zeros(40, int)]
    scores = np.r_[np.full(30, 0.9), np.full(10, 0.2), np.full(40, 0.1)]  # 75 % found, no false alarm
    row = predictive_values(scored(y, scores, n_boot=2000), prevalences=[0.02]).iloc[0]
    least = 0.02 * 0.75 / (0.02 * 0.75 + 0.98 * (1 - all_right(40)))
    assert row["ppv"] == row["ppv_high"] == 1
    assert row["ppv_low"] == pytest.approx(least, rel=0.15)


def test_a_model_that_calls_nobody_has_no_ppv_and_says_so():
    y, _ = published()
    measured = scored(y, np.full(80, 0.1))
    values = predictive_values(measured, prevalences=[0.3, 0.02])
    assert values[["ppv", "ppv_low", "ppv_high"]].isna().all().all() and values["npv"].notna().all()
    assert usefulness.predictive_table(values)["PPV"].tolist() == ["–", "–"]
    said = usefulness.says(decision_curve(measured), values)[1]
    assert said == "The model gives no alarm for COVID-19 here: what its alarms mean is not known."


def test_the_axis_reaches_from_a_thousandth_to_a_half_or_to_this_sets_share():
    y, scores = published()
    few = predictive_values(scored(y, scores))["prevalence"]
    assert (few.min(), few.max()) == pytest.approx((0.001, 0.5))
    ill = np.r_[y, np.ones(200, int)]
    many = predictive_values(scored(ill, np.r_[scores, np.full(200, 0.7)], n_boot=20))["prevalence"]
    assert many.max() == pytest.approx(ill.mean())


def test_one_patient_has_values_and_no_intervals():
    y, scores = published()
    measured = scored(y, scores, np.full(80, "p"))
    values = predictive_values(measured, prevalences=[0.02])
    assert values["ppv"].notna().all() and values[["ppv_low", "npv_high"]].isna().all().all()
    curve = decision_curve(measured)
    assert curve.table["model"].notna().all() and curve.table["low"].isna().all()
    assert curve.useful == []


# --- input, words


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: decision_curve(m, thresholds=[0.0, 0.5]), "a threshold is 0.0; accepted: above 0 and below 1"),
        (lambda m: decision_curve(m, prevalence=1.0), "a prevalence is 1.0; accepted"),
        (lambda m: predictive_values(m, prevalences=[2]), "a prevalence is 2; accepted"),
        (lambda m: decision_curve(m, thresholds=[]), "no threshold is given; accepted: one or more"),
        (lambda m: decision_curve(m, prevalence=0.1, calibrated_for=0.0), "calibrated for is 0.0; accepted: above 0"),
        (lambda m: at_prevalence([0.5, 1.2], 0.5, 0.1), "a probability is 1.2; accepted: from 0 to 1"),
        (lambda m: at_prevalence([np.nan], 0.5, 0.1), "a probability is nan; accepted: from 0 to 1"),
        (lambda m: decision_curve(m, "Flu"), "no class 'Flu'; there are: Normal, COVID-19"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(call, said):
    with pytest.raises(LungkitError, match=said):
        call(scored(*published()))


def test_images_of_one_class_cannot_say_whether_a_model_is_worth_using():
    with pytest.raises(LungkitError, match="every image is of COVID-19"):
        decision_curve(scored(np.ones(5, int), np.full(5, 0.9)))


def test_the_sentence_on_a_curve_gives_the_prevalence_that_it_holds_for():
    measured = scored(*published())
    own, rare = decision_curve(measured), decision_curve(measured, prevalence=0.02)
    assert usefulness.useful_says(own).startswith("Where 41 % have COVID-19, ")
    assert usefulness.useful_says(rare).startswith("Where 2 % have COVID-19, ")


def test_more_alarms_are_right_than_wrong_from_the_first_threshold_where_false_ones_are_rare_enough():
    y = np.repeat([1, 0], 100)
    scores = np.r_[np.linspace(0.3, 0.995, 100), np.full(98, 0.1), 0.6, 0.96]
    measured, at = scored(y, scores), (0.05, 0.5, 0.9, 0.97)
    ppv = [predictive_values(measured, prevalences=[0.02], threshold=one)["ppv"].iloc[0] for one in at]
    assert [value > 0.5 for value in ppv] == [False, False, False, True]
    assert "from a threshold of 0.97 on" in usefulness.more_right_says(measured, "COVID-19", at, 0.02)
    none = usefulness.more_right_says(measured, "COVID-19", at[:3], 0.02)
    assert "no alarm at these 3 thresholds is more likely right" in none
    assert usefulness.more_right_says(measured, "COVID-19", (0.9, 0.999), 0.02).count("at 0.9 the model calls 1 %") == 1
    assert usefulness.more_right_says(measured, "COVID-19", (0.999,), 0.02).endswith(
        "none of them calls anyone who is ill."
    )
    assert "49 others come to one who is ill, and even at 0.9 the model calls 1 % of them" in none


def test_the_sentences_set_this_sets_prevalence_against_a_rare_disease():
    measured = scored(*published())
    values = predictive_values(measured, prevalences=[33 / 80, 0.02])
    useful, alarms = usefulness.says(decision_curve(measured), values)
    assert useful == usefulness.useful_says(decision_curve(measured))
    assert "of which 41 % show it" in alarms and "where 2 % do" in alarms
    assert usefulness.percents(0.0157, 0.012, 0.0234) == "1.6 % (1.2–2.3 %)"
