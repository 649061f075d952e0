"""The process that worlds.py starts: it does the jobs of jobs.py, async_jobs.py and training_jobs.py."""

import async_jobs
import jobs
import training_jobs

if __name__ == "__main__":
    jobs.serve(jobs.named(vars(jobs)) | jobs.named(vars(async_jobs)) | jobs.named(vars(training_jobs)))
