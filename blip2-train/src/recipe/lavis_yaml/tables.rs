//! Names in LAVIS's files: keys without a counterpart, and data sets.

/// Keys that say nothing about training here, with the reason.
pub(super) const LEFT_OUT: &[(&str, &str)] = &[
    ("model.load_finetuned", "the run starts from `bridge_from`"),
    ("model.finetuned", "the run starts from `bridge_from`"),
    ("model.max_output_txt_len", "concerns InstructBLIP"),
    ("model.apply_lemmatizer", "concerns evaluation"),
    ("run.task", "follows from the architecture"),
    ("run.runner", "training is by steps"),
    (
        "run.amp",
        "activations are f32 on CPU backends; see `train.loss_scale`",
    ),
    ("run.output_dir", "given by `--out`"),
    ("run.resume_ckpt_path", "the same command goes on by itself"),
    ("run.evaluate", "concerns evaluation"),
    ("run.train_splits", "a data set is one split"),
    ("run.valid_splits", "see [validation]"),
    ("run.test_splits", "concerns evaluation"),
    ("run.batch_size_eval", "concerns evaluation"),
    ("run.device", "given by `--backend` and `--device`"),
    (
        "run.world_size",
        "given by `blip2-train launch`, torchrun or SLURM",
    ),
    ("run.dist_url", "given by `blip2-train launch`, torchrun or SLURM"),
    (
        "run.distributed",
        "given by `blip2-train launch`, torchrun or SLURM",
    ),
    ("run.use_dist_eval_sampler", "concerns evaluation"),
    ("run.save_freq", "see `train.checkpoint_every`, in steps"),
    ("run.val_freq", "see `train.validate_every`, in steps"),
    ("run.save_last", "the last checkpoint is always kept"),
    ("run.lr_decay_rate", "belongs to another schedule"),
    ("run.max_len", "concerns evaluation"),
    ("run.min_len", "concerns evaluation"),
    ("run.num_beams", "concerns evaluation"),
    ("run.inference_method", "concerns evaluation"),
    ("run.prompt", "concerns evaluation"),
    ("run.num_ans_candidates", "concerns evaluation"),
    ("run.k_test", "concerns evaluation"),
    ("run.repetition_penalty", "concerns evaluation"),
    ("run.length_penalty", "concerns evaluation"),
    ("run.top_p", "concerns evaluation"),
    ("run.temperature", "concerns evaluation"),
    ("run.annotation_file", "concerns evaluation"),
    ("run.img_ids", "concerns evaluation"),
    ("run.report_metric", "concerns evaluation"),
    ("run.sample_id_key", "concerns evaluation"),
    ("run.caption_key", "concerns evaluation"),
];

/// Data sets: name, annotation file and pictures below LAVIS's cache folder, format.
pub(super) const SETS: &[(&str, &str, &str, &str)] = &[
    (
        "coco_caption",
        "coco/annotations/coco_karpathy_train.json",
        "coco/images",
        "coco_caption",
    ),
    (
        "coco_retrieval",
        "coco/annotations/coco_karpathy_train.json",
        "coco/images",
        "coco_retrieval",
    ),
    (
        "flickr30k",
        "flickr30k/annotations/train.json",
        "flickr30k/images",
        "flickr30k",
    ),
    (
        "vg_caption",
        "vg/annotations/vg_caption.json",
        "vg/images",
        "vg_caption",
    ),
    (
        "sbu_caption",
        "sbu_captions/annotations/sbu.json",
        "sbu_captions/images",
        "sbu_caption",
    ),
    (
        "coco_vqa",
        "coco/annotations/vqa_train.json",
        "coco/images",
        "coco_vqa",
    ),
    (
        "ok_vqa",
        "okvqa/annotations/okvqa_train.json",
        "coco/images",
        "ok_vqa",
    ),
    ("vg_vqa", "vg/annotations/vg_qa.json", "vg/images", "vg_vqa"),
    (
        "gqa",
        "gqa/annotations/train_balanced_questions.json",
        "gqa/images",
        "gqa",
    ),
];

/// What a pair of `arch` and `model_type` stands for.
pub(super) struct Kind {
    pub(super) stage: &'static str,
    pub(super) vit: &'static str,
    pub(super) language: Option<(&'static str, &'static str)>,
    pub(super) image_size: i64,
    pub(super) prompt: &'static str,
    /// LAVIS's file of trained weights.
    pub(super) weights: &'static str,
}

pub(super) fn kind(arch: &str, model_type: &str) -> Option<Kind> {
    let vit = if model_type.ends_with("vitL") {
        "clip_L"
    } else {
        "eva_clip_g"
    };
    let fine = model_type == "coco" || model_type.starts_with("caption_coco");
    let (stage, language) = match arch {
        "blip2" | "blip2_feature_extractor" | "blip2_image_text_matching" => ("stage1", None),
        "blip2_opt" if model_type.contains("6.7b") => ("stage2", Some(("opt_model", "facebook/opt-6.7b"))),
        "blip2_opt" => ("stage2", Some(("opt_model", "facebook/opt-2.7b"))),
        "blip2_t5" if model_type.contains("xxl") => ("stage2", Some(("t5_model", "google/flan-t5-xxl"))),
        "blip2_t5" => ("stage2", Some(("t5_model", "google/flan-t5-xl"))),
        _ => return None,
    };
    let weights = match (stage, vit) {
        (_, "clip_L") => "blip2_pretrained_vitL.pth",
        ("stage2", _) if fine && arch == "blip2_opt" && model_type.contains("6.7b") => {
            "blip2_pretrained_opt6.7b.pth"
        }
        ("stage2", _) if fine && arch == "blip2_opt" => "blip2_pretrained_opt2.7b.pth",
        ("stage2", _) if fine => "blip2_pretrained_flant5xl.pth",
        _ => "blip2_pretrained.pth",
    };
    Some(Kind {
        stage,
        vit,
        language,
        image_size: if fine { 364 } else { 224 },
        prompt: if fine && stage == "stage2" {
            "a photo of"
        } else {
            ""
        },
        weights,
    })
}
