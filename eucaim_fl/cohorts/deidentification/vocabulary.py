"""The words that descriptions of series are made of: a pinned list, so that equal cohorts give equal indexes.

Compiled from DICOM's own terms, the vendors' names of sequences and reconstructions, and what public archives' series
are called. Lower case without accents. A person's name that happens to be one of them passes for one.
"""

from __future__ import annotations

__all__ = ["AFFIXES", "CLINICAL_WORDS", "LAYOUT_WORDS", "WORDS"]

_MODALITIES = """
beam bpmri bto cbct cesm ceus cone cr ct cta ctpa dbt dect dermoscopy dr dsa dx dxa eco ecografia endoscopy ffdm
fluoro histology hrct iqon irm ko ldct mammo mammografia mammografie mammographie mammography mamografia mg mpmri mr
mra mrcp mri mrs mrt nm opt ot pet petct petmr photo pr pt radiography rf rm rmn rtdose rtplan rtss rtstruct rx sc
scintigraphy seg sm spect sr tac tc tdm tomo tomography tomosintesi tomosynthesis ultraschall ultrasound us wsi xa
"""
_SEQUENCES = """
ac acct adc adcmap air aligned alignedt anisotropy apparent arc art arterial arteriell arterielle arteriosa
arterious asl asset atten attenuation attn auc avec average avg balanced basale base bffe bh big biphasic blade
bloodpool body bolus bravo breath breathhold bssfp btfe bval bvals bvalue bvalues cadc caipi caipirinha calc
calculated care caredose cbf cbv ce choline cine cm coarse coeff coefficient compressed con contr contra contrast
contraste contrasto coreg corr corrected correction cpr cs ctac cube dce ddwi deep delay delayed denoise denoised
dfov diff diffusie diffusion diffusione difusao difusion dinamica dinamico dis dis2d dis3d disco dix dixon dki dl
dota dotarem dotatate dsc dsi dti dw dwi dwis dyn dyna dynamic dynamics dynamique dynamisch dynaviews dyndist
dyndistcalc dynview dynviews eadc early ecg edge edifusao edwi efov enhanced enhancement eovist ep ep2d epi
equilibrio equilibrium ethrive excretion excretora excretory exp expadc expi expiration expiratory exponential f18
fa fame fapi fast fat fatfrac fatsat fatsup fatsuppressed fatsuppression fatty faza fb fbp fdg fes fet ff ffe ffov
fgr fgre fiesta filt filtered fine fisp flair flash flex flt fluciclovine fmiso focus fov fractional freebreathing
frfse fs fsat fse fspgr fsub fullfov fused fusion ga ga68 gad gado gadolinium gadovist gap gate gated gating gd ge
ge2 grappa grasp gre haste hasteirm hbp hepatobiliary hi high highres hires hold hr hypersense iauc ideal idealiq
imaginary in inoutphase inp inphase insp inspi inspiration inspiratory interp iodine iodixanol iomeron ioversol ip
ipat ipat2 ir irfse irse iso isotrop isotropic isovue iter iterative ivim kep km kontrast kontrastem kontrastmittel
ktrans kurtosis large late lava lfov lo long low lowres lr mag magnevist magnitude map mapping maps matrix mb mbh mc
mdc mdixon mean minip mip mips mit mix mk moco monitoring motion mp2rage mpr mprage mpvr mrac mthrive mtt mu multi
multiband multihance multiphase multivane mumap muse nac nat nativ nativa native nativo nav navigator nd nefro
nephro nephrographic neuro nofs noncontrast nonorm norm normal ohne omnipaque oop op opp opposed osem out outp
outphase parallel param parametric pd pdw pdwi peak perf perfusie perfusion perfusione pfov ph pha phase phases
portal portale portalvenos portalvenous porto post postcontrast postgd pre precontrast pregad premonitoring prep
prescan primovist propeller psf psma pv pvp quadriphasic radial radials rdwi real recon reg registered registration
res resolution resolve resp respct rest rfov rs rt rtr sans sat sats schicht se se2d sense senseflex senza sfov
short shot single skull sl slab slc slice slices slope small smartprep smooth smoothed sms snr sout space spair spat
spgr spir ssd ssfp ssfse ssh sshot ssub st star starvibe stat static statisch still stir stress sub subs subtr
subtract subtracted subtraction sum supp suppress suppression suv swan swi swip t1 t1rho t1w t1wi t2 t2star t2w t2wi
tardia tardif tardio tardiva tc99m tensor tera testbolus tfe tfi tfl thick thigh thin thins thk thrive timing tir
tirm tmax toes tof torso tra trace traces tracew track tracker tram tricks trig trigger triggered triphasic truefisp
trufi trufisp tse ttp twist ultravist uncorr uncorrected unenhanced unfiltered uni uro urografia urogram ve veineux
venos venosa venous vertex vibe visipaque vista vp vr vrt vt w wash washin washout water waterfat watersat wb wbac
wbnac we wf wfi whole wholebody with without wo zip zoom zoomit
"""
_PLANES = """
3plane a ap ax axiaal axial axiale axiales axials axilla axillary axt bil bilat bilateral both cal calib calibration
cc cor coronaal coronal coronale coronals dbl derecha destra destro direita double droite esquerda feet ffp ffs
first gauche head hfp hfs implant izquierda kor koronar l lat lateral laterale lcc left li links ll lm lml lmlo loc
localiser localizador localize localizer localizzatore locator lokalizer lt ml mlo obl oblik oblique orth orthogonal
p pa para paraaxial paracor paracoronal parasag parasagittal perpendicular pilot plane planes planning proj
projection projections pron prone r rad rcc re rechts right rl rml rmlo s sag saggital sagital sagitt sagittaal
sagittal sagittale scano scanogram scanogramm scout scouts scoutview sinistra sinistro spot sup supine surv survey
surview tang topo topogram topograma topogramm topos trans transaxial transv transversa transversal transverse trasv
trasversale unilat unilateral view views xccl
"""
_ORGANS = """
abd abdo abdome abdomen abdomenpelvis abdominal abdpel abdpelvis addome adnexa adrenal adrenals airway airways anal
ankle anus aorta aortic apex appendix area areas arm arms arteries artery ascites bacino background basal bassin
bauch bazo becken bekken bile biliary bladder blandas blase blood bone bones bony bot bowel brain breast breasts
bronchi bronchus brust brustdruese brzuch brzuszna buik bws cabeca cabeza caecum cancer cap carcinoma card cardiac
cardio cava cavity central cerebellum cerebral cerebro cerebrum cerveau cervical cervix chabdpelv chest chestabdpel
chst clavicle coccyx coeur colecisti collo colo colon colonic colonna colonography columna coronaries coronary cou
cran cranio cranium cspine cuello cuore cyst cysts cz delen derm dermis duct duodenum edema elbow encefalo esofago
esophagus estomago extremities extremity face fantoom fegato femur figado foie foot gallbladder gastric gehirn glowa
gluteal hals hand heart hepar hepatic hepato hersenen herz higado hilar hilum hip hips hueso humerus hws hypophyse
ileum iliac index inguinal intestine ipofisi jama jejunum kid kidney kidneys knee knochen kolon kopf landmark larynx
leber leg legs lesion lesione lesions lever limb linfonodi liver lobe lombare longen lspine lumbar lung lunge lungs
lws lymph lymphnode magen mala mama mamas mamma mammae mammella mass mastoid mediastin mediastinal mediastino
mediastinum mesenteric mesentery met metastases metastasis mets miednica milz milza molli muscle muscles nasopharynx
neck necrosis neoplasm niere nieren nipple nodal node nodes nodul nodule nodules nodulo nodulos oberbauch oedema
oesophagus omentum orbit orbita orbits oropharynx os ossea osseous osso ovaio ovaries ovario ovary panc pancreas
pancreatic pancreatico paraaortic parathyroid parotid partes parti pel pelv pelvi pelvic pelvica pelvico pelvis
peripheral peritoneal peritoneum pescoco phantom pharynx pituitary pleura pleural pluca polmonare polmone polmoni
poumon poumons pros prost prosta prostaat prostata prostate prostatica prostatico psoas pulm pulmao pulmon
pulmonaire pulmonary pulmones pz qa qc rachis rate rectal recto rectum region regions rein reins rektum ren renal
retroperitoneal retroperitoneum retto rib ribs rinon sacral sacrum salivary scapula schadel schilddruse sein sella
seminal seno shoulder side sigma sigmoid sinus sinuses skeletal skeleton skin soft spinal spine spleen splenic
sternum stomach stomaco suprarenal surrene szyja tap target temporal testa testis tete tho thor thoracic
thoracolumbar thorax thoraxabdomen thyroid tibia tiroide tiroides tissue tissues tongue torace torax total trachea
transition tspine tumeur tumor tumore tumour tz unterbauch ureter urinary uterine utero uterus vagina vasculature
vein veins vejiga vena vertebra vertebral vescica vesical vesicle vesicles vessel vessels vessie vulva wall watroba
weichteil weke wirbelsaule wrist zone
"""
_WORK = """
1d 2d 2dfse 3d 3dfse 4d 5d achieva acq acquired acquisition add additional admire advantage aera after agfa ai aice
aidr all alt alternate alternative ambition an anatomical anatomy and ang angle annot annotated annotation
annotations anon anonymized ant anterior aplio aquilion architect artist as asir asirv at auto automatic av avanto
avgs axialscan b baseline basic before begin biograph biopsy boneplus bottom bounding box boxes bq bqml brainlab
brilliance bruker c cad canon captk capture captured carestream center centered clinical compose composed contour
contours control corrupted crop cropped ctdi curve curves d da de default definition deg degree degrees deid
deidentified del demo der derived des detail di diagnostic dimensions discovery distal dlir dorsal dose doseinfo
dosereport drive du dual dummy during dynasuite e echo echoes echos effz el elition emotion empty en end energy epiq
esame esaote espree essenza et evaluation evaluations exam examination example ext external extra f false feature
features fenster filter filters final finestra firstorder five follow followup for force four fourth from fujifilm
full functional g gantry gemini go graph ground gt guidance guided gy h half harmonized healthcare healthineers
helical hitachi hologic hu hybrid hz i idose idose4 image images imaging img immobilization imr incremental inferior
info information ingenia ingenuity inner int intera internal intervention interventional kern kernel kev khz konica
kv kvp la label labelmap labels last le les lesionseg lightspeed logiq lower lumina lungplus m ma magnetom mammomat
manual marker markers mas mask masks mbir mbq measure measurement measurements med medial mediast medical medium mgy
mhz mid middel middle min mindray minolta mins minute minutes missing mm model molecular monai mono monoe
monoenergetic moved ms msec multiecho multiparametric multislice n naeotom navigation needle neusoft new nex nnunet
no non none normalized not nsa o of og old on one only optima option optional or orig original other outer output
overview pad padded panorama part partial per percent philips plan planmed point points por posterior pour predicted
prediction premier presentation primary prime prisma prob probabilities probability processed progress protocol
proximal q qualitative quality quantitative radiomics radiotherapy raw reader rec recons reconstruccion
reconstructed reconstruction record reformat reformations reformats reformatted rekonstruktion rep repeat repeated
report resample resampled rescaled research resized restaging result results retest revolution ricostruzione robotic
roi rois rotating rotation routine rpt safire sample samsung save scan scanned scans screen screening screenshot sec
second secondary seconds secs sectra seed segmentacion segmentation segmentations segmentazione segmented select
selected selenia semi semiautomatic senographe sensation seq sequence sequential seria serie serien series shape
sharp shifted shoot siemens signa sim simulation six skyra softtissue somatom sonata special specials spectral
spiral spirale stack stacks staging stand standard standardized start state std stealth step stitched stnd stop
struc struct structure structures study su summary superior sur surgery surgical surgicalnavigation symphony syngo
synthetic systems t table tables tesla test texture the therapy third three til tilt titan to top toshiba
totalsegmentator treatment trial trio true truth two u uih um und united up upper v van vantage ventana ventral veo
vereos verio version vida vision visit vmi vnc voi vois vol volume volumes volumetric von wdh win window wip works x
y yes z zeff
"""
_EXTRA = """
abdominell abdomino abs acrin advdiff affected agent aggressiveness aksial aksialni alg angio angiografia angiogram
angiographie angiography angles aqul array arrow arrows arterias arterieel arterioso aspir assiale assiali awplan
axiala axiaux axiell axl bases bez bi bild bilder bl black bliss bodycoil bp brava breastmr breathing brich bricho
bright brilliancebigbore brst bukk bx ca calcium carotid carotide ch changed chestabdpelvis cinectac cinematic ciss
classification clear clip close closed coil coils collection combined comp consensus cont contd coronales coronali
coronaux corte cortes coupe coupes craneo csp ctabdomen ctap ctchest ctthorax dac dadc dark ddifusao decub
definitionas delays dense description dess detect dfc digital direct diretta discoveryste display doses dpa dpl dry
dscls dscqx dsl dsr duke dummyseriesdesc dwssfse dy dyn1 dyn2 dynad dynamiczna echoplanar embolie embolism
encefalico endorectal equil erc esami experimental expose exposure exposures eyes factors fase fases fasi fastest
faststir faze fc fieldmap fiestac fil fill filled fl2d fl3d flexcoil flip flipangle flipped flow fluid fluoroscopy
fourier frame frames free fruh fully gk gradient gradientecho gray grey has hcqx hd hicontrast higados hot hres
hrudnik hsqx idealarc idri imar improved infusion inj inject injecte injectee injection intelligent interest
interpolated interpolation inversion invert inverted ionic isotro ispy iv jatra key keyimage keyimages kismedence
klatka klp kontrastowa kontrastu kontroll konv koronale koronalni leberprotokoll leftbreast lidc lightspeedpro
localization locontrast loop lostatistics lsp lsplus lspr lspwr lsqx lsult lsvct lungart lungor mac mam mammogram
mapped matter max mddw mellkas merge mergedmsmb mffe minus mipcor mipsag miptra mode movie mp mph mpl mps mrbreast
mrliver mrprostate multib multishot mx na nad narrow nativen neg nieuw njurar nlst noattn nonca nonionic null omni
oncology opa opb open opened opl opozniona opoznione opti osa pacs padding parenchymal pase pass passes patient pe
pei pelvien pelvisdelay phasedarray picai piersiowa pjn pl planar plice plus port pos posdisp position positions
postc prec precoce precon prefatsat preview proc procedure processing product prostatemr prostatex protokoll psif
pulsed qiba qin qual quick quickview rage ramla range rapid realtime reconfilter recovery ref reference reform rider
rightbreast rodeo rotate rst runoff safect saggr sagitales sagittali sagittals sagittaux sansinj saturation sax
scansione scattered schichten score segment seidealarc sekwencja selective sen sens ser serier session shim silicon
simple singleshot skintoskin sliceinc sliceth smart smartplan smarttx sn snapshot spatphase spc spess spheres spin
spineecho split spo spoelen spoelencalc spoiled ss standardprotokoll steady stenosis sticks stimulated stn
subtractions super surface szyi tcia te temp test1 tetnicza thinmip thoracique thorakal through thru ti toracica
toracico tr trad trance transversaal transversale tris trt truncated tt turbo turn type ubersicht uebersicht ultra
ultrafast unk unkn unlabeled utan vacio value variable vbw ven venas veneus venose venoso verlauf vfa vib vibrant
virt volser volumetrica vuoto vzoom weighted wezly white wide windows zero zoomed zylna zz
"""
_GENERIC = """
compression create created creator decompressed equipment file files instance jpeg library lossless lossy purpose
rle software source this used
"""

WORDS = frozenset(" ".join((_MODALITIES, _SEQUENCES, _PLANES, _ORGANS, _WORK, _EXTRA, _GENERIC)).split())
"""Known imaging words."""

_AFFIXES_TEXT = """
2d 3d 4d abd abdomen adc arterial ax axial bh blade body bone breast bval bvals calc calcbval chest contrast cor
coronal ctac dce delayed diff dist dixon dwi dyn dyndist dynview dynviews ep ep2d epi epse fatsat fb ffe flair flash
fov fs fse full gre haste head ipat kernel label late lava liver loc localizer lung map mask mip mix mpr nac native
neck obl pd pdw pel pelvis phase portal post pre prostata prostate recon routine sag sagittal scan scout se seg
segmentation sense series soft space spair spgr spine spir ssh standard stir sub survey t1 t1w t2 t2w tfe thick thin
thor thorax thrive tirm topo topogram tra trace trufi tse venous vibe water wb wbac whole
"""
AFFIXES = frozenset(_AFFIXES_TEXT.split())
"""Words that scanners write without a space between them, as in `t2tsetra`."""

_LAYOUT_WORDS_TEXT = """
anat anonymised anonymized anonymous archive assessors backup baseline bids cancer case cases changes clinical
cohort cohorts condition consent copy csv data dataset datasets dcm demo derivatives description dicom dicomdir
dictionary dwi eform eforms episode eucaim event experiment export fmap fold followup form forms frame frames func
gz ham hospital idri im image images imaging img imgs import index input inputs isic json label labels left lesion
license lidc local log mandatory mask masks meta metadata modality new nifti nii nlst node nodule none notice old
organ output outputs participants pat patient patients perf pet phenotype picai post postop pre preop private
procedure project projects prostatex public radiotherapy raw rawdata readme resource resources result results right
run runs scan scans secondary segment series ses session sessions shared site sites slice slices snapshots
sourcedata split studies study sub subj subject subjects surgical tcia temp test tests thumbs tier tmp train
training treatment tsv tumor tumour txt unknown upv val validation view visit vol volume xml xnat zip
"""
LAYOUT_WORDS = frozenset(_LAYOUT_WORDS_TEXT.split())
"""Words that folders and files of cohorts are called, beyond imaging words."""

_CLINICAL_TEXT = """
abnormal absent acinar active acute adeno adenocarcinoma adenoma advanced african age aggressive akiec american
ashkenazi asian atypical basal baseline bcc benign bilateral birads bkl black bowen british caucasian cell cells
center centre chemo chemotherapy chinese chronic clear clinically colorectal complete confirmed control cribriform
day days dead deceased definite department diagnosis diffuse disease distant ductal early east ecog elevated
endocrine epithelial equipment european ever ex excision external false favorable female former free gender
generalised gleason good grade group high hispanic histologic hormone immunotherapy inconclusive indian indolent
infiltrating inflammatory intermediate intraductal invasion invasive irish isup keratosis known kras latino library
lirads lobular local localised low luminal lumpectomy lymphoma male malignancy malignant man married mastectomy mel
melanocytic melanoma men menopausal metastatic mild minor mixed moderate moderately month months mucinous mutant
mutation negative neuroendocrine never nevi nevus none nonsmoker normal north observation open organ papillary
partial pathologic pathology pattern pending performed pirads poor poorly positive possible postmenopausal
premenopausal present primary probable progression progressive prostatectomy quit radical radio randomised
recurrence recurrent refused relapse resection response risk sarcoma score secondary severe significant simple situ
small smoker smoking software solid solitary south squamous stable stage status surgery surveillance suspicious
systemic therapy tnm transurethral triple tubular type undifferentiated unfavorable universitario university
urothelial vasc vascular week weeks well west white wild woman women year years yes
"""
CLINICAL_WORDS = frozenset(_CLINICAL_TEXT.split())
"""Words of medicine and of people's origin that stand in clinical tables beside each other, with capitals."""
