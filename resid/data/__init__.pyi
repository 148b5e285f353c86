from .batches import Batches as Batches
from .batches import pixel_statistics as pixel_statistics
from .loading import Dataset as Dataset
from .loading import load_dataset as load_dataset
from .official import DataFileError as DataFileError
from .official import data_folder as data_folder
from .whitened import image_pairs as image_pairs
from .whitened import load_whitened as load_whitened
