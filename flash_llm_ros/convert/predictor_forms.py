"""The predictors that `flash_llm calibrate` tries for each layer."""

from flash_llm_ros.store.predictor_graph import PredictorForm

DEFAULT_FORMS = (*(PredictorForm('low_rank', rank) for rank in (64, 128, 256)),
                 *(PredictorForm('sketch', bits) for bits in (2, 4)))
TRAINED_FORMS = (PredictorForm('trained', 64), PredictorForm('trained', 128))
