"""Methods that give a model back what compression took: training, alone or with the original as teacher."""
