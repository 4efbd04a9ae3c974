import pytest

from fashion_study.data.dataset import StudyData, load_study_data, locate


@pytest.fixture(scope="session")
def digits() -> StudyData:
    return load_study_data(locate("digits"))
